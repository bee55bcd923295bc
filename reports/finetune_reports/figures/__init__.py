"""The pictures of a report, as figures of Plotly: a function each, from the document to a figure or to none."""
