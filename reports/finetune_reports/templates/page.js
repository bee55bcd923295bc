"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

  // Colours of the page, so that a figure is dark where the page is.
  const look = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: of("--line"), linecolor: of("--line"), zerolinecolor: of("--line"), automargin: true, exponentformat: "power" };
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: of("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
        xaxis: axis,
        yaxis: axis,
        margin: { l: 56, r: 16, t: 16, b: 48 },
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
        hoverlabel: { align: "left" },
      },
    };
  };

  const draw = () => {
    const figures = JSON.parse(document.getElementById("figures").textContent);
    for (const [id, figure] of Object.entries(figures)) {
      const place = document.getElementById("plot-" + id);
      Plotly.react(place, figure.data, { ...figure.layout, template: look() }, config);
    }
    document.documentElement.dataset.drawn = "yes";
  };

  draw();
  dark.addEventListener("change", draw);
  addEventListener("beforeprint", draw);
  addEventListener("figures", draw); // a page that is followed has got new ones
})();
