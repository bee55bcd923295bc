// celcost prints what every CEL rule of a CustomResourceDefinition costs by kube-apiserver's own
// estimate, dearest first, and exits with 1 if the API server of this version would refuse one rule,
// or all of them together.
//
//	celcost crd.yaml
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"text/tabwriter"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: celcost CRD-FILE")
		os.Exit(2)
	}
	crd, err := load(os.Args[1])
	if err != nil {
		fmt.Fprintf(os.Stderr, "celcost: %s: %v\n", os.Args[1], err)
		os.Exit(2)
	}
	acceptable := true
	for _, version := range crd.Spec.Versions {
		rules, err := estimate(version)
		if err != nil {
			fmt.Fprintf(os.Stderr, "celcost: version %s: %v\n", version.Name, err)
			os.Exit(2)
		}
		acceptable = report(version.Name, rules) && acceptable
	}
	if !acceptable {
		os.Exit(1)
	}
}

func load(path string) (*apiextensionsv1.CustomResourceDefinition, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(text, crd); err != nil {
		return nil, err
	}
	if len(crd.Spec.Versions) == 0 {
		return nil, fmt.Errorf("spec.versions must not be empty")
	}
	return crd, nil
}

func estimate(version apiextensionsv1.CustomResourceDefinitionVersion) ([]rule, error) {
	if version.Schema == nil || version.Schema.OpenAPIV3Schema == nil {
		return nil, fmt.Errorf("must have a schema")
	}
	root := &apiextensions.JSONSchemaProps{}
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(
		version.Schema.OpenAPIV3Schema, root, nil); err != nil {
		return nil, err
	}
	rules := []rule{}
	err := collect("", root, validation.RootCELContext(root), &rules)
	sort.SliceStable(rules, func(i, j int) bool { return rules[i].cost > rules[j].cost })
	return rules, err
}

// report prints the table of one version and says whether the API server accepts its rules.
func report(version string, rules []rule) bool {
	var total uint64
	refused := 0
	out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "cost\t% of limit\t verdict\t  field and rule")
	for _, r := range rules {
		total = addCapped(total, r.cost)
		verdict := "ok"
		if r.cost > validation.StaticEstimatedCostLimit {
			verdict = "TOO COSTLY"
		}
		if r.fault != "" {
			verdict = "INVALID"
		}
		if verdict != "ok" {
			refused++
		}
		share := 100 * float64(r.cost) / validation.StaticEstimatedCostLimit
		fmt.Fprintf(out, "%d\t%.2f\t %s\t  %s\n", r.cost, share, verdict, r)
	}
	out.Flush()
	fmt.Printf("%s: %d rules, %d refused; total cost %d, %.1f %% of the limit %d\n", version, len(rules), refused,
		total, 100*float64(total)/validation.StaticEstimatedCRDCostLimit, validation.StaticEstimatedCRDCostLimit)
	return refused == 0 && total <= validation.StaticEstimatedCRDCostLimit
}

func (r rule) String() string {
	text := fmt.Sprintf("%s [%s] %s", r.path, r.kind, strings.Join(strings.Fields(r.expression), " "))
	if r.fault != "" {
		text += " — " + r.fault
	}
	return text
}
