"""Write the HTML template of `dvc plots`, which needs no network: ``python -m tools.plots_page``."""

from pathlib import Path

import vl_convert

ROOT = Path(__file__).resolve().parent.parent
# DVC's plots call this without options. Their schema is Vega-Lite 5, which Vega-Lite 6 reads, too.
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
    page = (ROOT / "tools/plots_page.html").read_text(encoding="utf-8")
    page = page.replace("{javascript}", vl_convert.javascript_bundle(VEGA_EMBED))
    (ROOT / ".dvc/plots/page.html").write_text(page, encoding="utf-8")
