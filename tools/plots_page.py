"""Write the page of `dvc plots`, with Vega's JavaScript inside: ``python -m docs.make_plots_page``.

Needs ``vl-convert-python`` (1.9.0 made this page), which the project does not: install it into another environment.
"""

from pathlib import Path

import vl_convert

ROOT = Path(__file__).resolve().parent.parent
# What DVC's plots call, without options. They name version 5 of Vega-Lite, whose successor understands them.
VEGA_EMBED = """
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const wholeNumbers = { labelExpr: "datum.value % 1 ? '' : datum.value" };
window.vegaEmbed = (element, spec) =>
  vegaEmbed(element, { ...spec, $schema: "https://vega.github.io/schema/vega-lite/v6.json" }, {
    renderer: "svg",
    theme: dark ? "dark" : undefined,
    config: {
      background: "transparent",
      axis: { gridColor: "#8884" },
      axisXQuantitative: spec.encoding?.x?.title === "epoch" ? wholeNumbers : {},
    },
    actions: { editor: false },
    logLevel: 1, // errors
  });
"""

if __name__ == "__main__":
    page = (ROOT / "docs/plots_page.html").read_text(encoding="utf-8")
    page = page.replace("{javascript}", vl_convert.javascript_bundle(VEGA_EMBED))
    (ROOT / ".dvc/plots/page.html").write_text(page, encoding="utf-8")
