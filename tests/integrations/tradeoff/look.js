// Runs in the browser that kaleido's wheel carries, in place of the plotting library it expects:
// opens a page in a frame of some width, so high that nothing scrolls, and says what a reader would
// see there.
window.Plotly = {
  version: "2.0.0",
  toImage: function (asked) {
    var url = asked.data[0].url, width = asked.data[0].width;
    return new Promise(function (resolve) {
      var frame = document.createElement("iframe");
      frame.style.cssText =
        "position:fixed;left:0;top:0;border:0;z-index:9;height:12000px;width:" + width + "px";
      frame.onload = function () {
        var seen;
        try { seen = look(frame.contentWindow); } catch (fault) { seen = { fault: String(fault) }; }
        frame.remove();
        resolve(JSON.stringify(seen));
      };
      frame.src = url;
      document.body.appendChild(frame);
    });
  },
};

function look(window) {
  var document = window.document, root = document.documentElement;
  function box(element) {
    var at = element.getBoundingClientRect();
    return { left: at.left, top: at.top, right: at.right, bottom: at.bottom };
  }
  function mark(group) {
    var at = box(group), style = window.getComputedStyle(group.querySelector("use"));
    // The lower part of a shape: a triangle's middle is outside of some of its marks' holes.
    var hit = document.elementFromPoint((at.left + at.right) / 2, (at.top + at.bottom) / 2);
    var owner = hit ? hit.closest("g.mark") : null;
    return {
      words: group.querySelector("title").textContent,
      box: at,
      on_top: owner ? owner.querySelector("title").textContent : hit ? hit.textContent : null,
      stroke: style.stroke,
      fill: style.fill,
    };
  }
  function plot(svg) {
    return {
      id: svg.id,
      box: box(svg),
      marks: Array.from(svg.querySelectorAll("g.mark")).map(mark),
      lines: Array.from(svg.querySelectorAll("g.line path")).map(function (line) {
        var ctm = line.getScreenCTM(), length = line.getTotalLength();
        return {
          style: line.parentNode.className.baseVal,
          length: length * ctm.a,
          stroke: window.getComputedStyle(line).stroke,
          start: [0, length].map(function (along) {
            var point = line.getPointAtLength(along).matrixTransform(ctm);
            return [point.x, point.y];
          }),
        };
      }),
      smallest_letters: Math.min.apply(null, Array.from(svg.querySelectorAll("text")).map(
        function (text) { return parseFloat(window.getComputedStyle(text).fontSize) *
          text.getScreenCTM().a; })),
    };
  }
  return {
    mode: document.compatMode,
    title: document.title,
    width: root.scrollWidth,
    colours: {
      paper: window.getComputedStyle(document.body).backgroundColor,
      ink: window.getComputedStyle(document.body).color,
      soft: window.getComputedStyle(document.querySelector(".notes")).color,
    },
    recommendation: document.getElementById("recommendation").innerText,
    rows: Array.from(document.querySelectorAll("tbody tr")).map(function (row) {
      return row.innerText.split("\t");
    }),
    fetched: window.performance.getEntriesByType("resource").map(function (e) { return e.name; }),
    scripts: document.scripts.length,
    plots: Array.from(document.querySelectorAll("svg.plot")).map(plot),
  };
}
