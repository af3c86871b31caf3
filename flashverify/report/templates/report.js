"use strict";
// Unpacks the plotting library (gzip, base64: a third of its size), then draws the figures in the page's own colours.
(async () => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll(".plot")];
  if (!places.length) return;
  try {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  } catch (error) {
    for (const place of places) place.firstElementChild.textContent =
      "This browser cannot unpack the plots; the tables hold their numbers. (" + error + ")";
    return;
  }
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const value = name => style.getPropertyValue(name).trim();
    return {ink: value("--ink"), line: value("--line"), panel: value("--panel")};
  };
  const themed = layout => {
    const {ink, line, panel} = colours();
    const result = {...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      font: {color: ink, size: 12, family: getComputedStyle(document.body).fontFamily},
      hoverlabel: {bgcolor: panel, bordercolor: line, font: {color: ink}}};
    for (const key of Object.keys(result)) {
      if (/^[xy]axis\d*$/.test(key)) result[key] = {automargin: true, gridcolor: line, linecolor: line, zerolinecolor: line, ...layout[key]};
    }
    return result;
  };
  const options = {responsive: true, displayModeBar: false};
  const draw = () => Promise.all(places.map(place => {
    const figure = figures[place.id];
    return Plotly.react(place, figure.data, themed(figure.layout), options);
  }));
  for (const place of places) place.replaceChildren();
  await draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("print").addEventListener("change", draw);
})();
