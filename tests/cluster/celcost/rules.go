package main

import (
	"fmt"
	"math"
	"sort"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

// rule is one CEL expression of a schema with its estimated cost over a whole object.
type rule struct {
	path, kind, expression, fault string
	cost                          uint64
}

var environments = environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())

// collect appends the rules of a schema and everything below it, fields in alphabetical order.
func collect(path string, schema *apiextensions.JSONSchemaProps, at *validation.CELSchemaContext, into *[]rule) error {
	if err := collectHere(path, schema, at, into); err != nil {
		return err
	}
	names := make([]string, 0, len(schema.Properties))
	for name := range schema.Properties {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		child := schema.Properties[name]
		if err := collect(path+"."+name, &child, at.ChildPropertyContext(&child, name), into); err != nil {
			return err
		}
	}
	if schema.Items != nil && schema.Items.Schema != nil {
		child := schema.Items.Schema
		if err := collect(path+"[]", child, at.ChildItemsContext(child), into); err != nil {
			return err
		}
	}
	if schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil {
		child := schema.AdditionalProperties.Schema
		return collect(path+"{}", child, at.ChildAdditionalPropertiesContext(child), into)
	}
	return nil
}

func collectHere(path string, schema *apiextensions.JSONSchemaProps, at *validation.CELSchemaContext, into *[]rule) error {
	if len(schema.XValidations) == 0 {
		return nil
	}
	if path == "" {
		path = "."
	}
	types, err := at.TypeInfo()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if types == nil {
		return fmt.Errorf("%s: rules must not stand where unknown fields are preserved", path)
	}
	compiled, err := cel.Compile(types.Schema, types.DeclType, celconfig.PerCallLimit, environments, cel.NewExpressionsEnvLoader())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for i, result := range compiled {
		given := schema.XValidations[i]
		found := rule{path: path, kind: "rule", expression: given.Rule, cost: wholeObject(result, at)}
		if result.Error != nil {
			found.fault = result.Error.Detail
		}
		*into = append(*into, found)
		if given.MessageExpression == "" {
			continue
		}
		message := rule{path: path, kind: "message", expression: given.MessageExpression, cost: result.MessageExpressionMaxCost}
		if result.MessageExpressionError != nil {
			message.fault = result.MessageExpressionError.Detail
		}
		*into = append(*into, message)
	}
	return nil
}

// wholeObject multiplies what a rule costs once by how often its field can occur, as the API server does:
// by the schema's own bound, else by what fits into a request.
func wholeObject(result cel.CompilationResult, at *validation.CELSchemaContext) uint64 {
	times := result.MaxCardinality
	if at.MaxCardinality != nil {
		times = *at.MaxCardinality
	}
	if times != 0 && result.MaxCost > math.MaxUint64/times {
		return math.MaxUint64
	}
	return result.MaxCost * times
}

func addCapped(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
