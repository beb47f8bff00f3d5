"use strict";
// The page is whole without this script; it draws the curves, filters the answers, and asks for more in a live page.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const HUES = ["#2f7ed8", "#e07b26", "#2a9d5c", "#c0457f", "#7c5cd6", "#0e9aa7", "#b58900", "#808a94", "#d1495b", "#4f772d", "#9d6b53", "#5e60ce"];
  const root = document.documentElement;
  const plots = [];

  // ---- curves

  const value = (v) => (v === null || v === undefined ? "–" : Number.isInteger(v) ? String(v) : Number(v.toPrecision(6)).toString());

  // on an axis there is room for few characters
  const short = (v) => {
    if (v === null) return null;
    const plain = Number(v.toPrecision(4));
    // as many digits as tell two ticks apart: 1e-6 and 1.2e-6
    return v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e6) ? Number(v.toPrecision(3)).toExponential() : plain.toString();
  };

  // a curve that never changes lies in the middle of its chart, whatever its size
  const range = (plot, low, high) => {
    if (low === null) return [0, 1];
    const room = Math.abs(low) / 2 || 0.5;
    return low === high ? [low - room, high + room] : uPlot.rangeNum(low, high, 0.1, true);
  };

  // a single step lies in the middle
  const stepRange = (plot, low, high) => {
    const steps = plot.data[0];
    return steps.length === 1 ? [steps[0] - 1, steps[0] + 1] : [low, high];
  };

  // there is no half a step, and none before the first
  const whole = [...Array(10).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));

  const ink = () => getComputedStyle(root).getPropertyValue("--quiet").trim();
  const rule = () => getComputedStyle(root).getPropertyValue("--rule").trim();

  function tint(hex, alpha) {
    const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${parts.join(",")},${alpha})`;
  }

  // uPlot wants columns: x, one per curve, and two more for each interval
  function columns(chart, table) {
    const lists = [table.steps];
    const drawn = (list) => (chart.log ? list.map((v) => (v > 0 ? v : null)) : list);
    for (const one of chart.series) lists.push(drawn(table.columns[one.column]));
    const bands = [];
    chart.series.forEach((one) => {
      if (!one.band) return;
      bands.push({ one, at: lists.length });
      lists.push(table.columns[one.band[1]], table.columns[one.band[0]]);
    });
    return { lists, bands };
  }

  function options(chart, lists, bands, width) {
    const few = lists[0].length < 40;
    // the ends of an interval are read off with its value and have no line of their own
    const interval = (plot, one, at) => {
      const band = bands.find((each) => each.one === one);
      if (!band || at === null || at === undefined) return "";
      return ` [${value(plot.data[band.at + 1][at])}, ${value(plot.data[band.at][at])}]`;
    };
    const series = [{ label: "step", value: (_, v) => value(v) }];
    for (const one of chart.series) {
      series.push({
        label: one.label,
        stroke: HUES[one.hue % HUES.length],
        width: one.run ? 1.25 : 2,
        dash: one.dash ? [3, 4] : one.run ? [8, 4] : undefined,
        spanGaps: true,
        points: { show: few, size: 5 },
        value: (plot, v, _, at) => value(v) + interval(plot, one, at),
      });
    }
    for (const band of bands) {
      const hue = HUES[band.one.hue % HUES.length];
      for (const end of ["to", "from"]) {
        series.push({ label: `${band.one.label} ${end}`, class: "interval", stroke: tint(hue, 0.35), width: 1, spanGaps: true, points: { show: lists[0].length === 1, size: 5 }, value: (_, v) => value(v) });
      }
    }
    const axis = { stroke: ink, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1 } };
    return {
      width,
      height: 220,
      series,
      bands: bands.map((band) => ({ series: [band.at, band.at + 1], fill: tint(HUES[band.one.hue % HUES.length], 0.15) })),
      scales: { x: { time: false, range: stepRange }, y: chart.log ? { distr: 3 } : { range } },
      axes: [{ ...axis, incrs: whole, values: (_, ticks) => ticks.map((at) => (at < 0 ? "" : value(at))) }, { ...axis, size: 62, values: (_, ticks) => ticks.map(short) }],
      cursor: { y: false },
    };
  }

  function draw(charts, table, place) {
    const room = document.getElementById(place);
    if (!room || !table.steps.length) return;
    for (const chart of charts) {
      const box = document.createElement("div");
      box.className = "chart";
      const title = document.createElement("h4");
      title.textContent = chart.title;
      box.append(title);
      if (chart.note) {
        const note = document.createElement("p");
        note.className = "small";
        note.textContent = chart.note;
        box.append(note);
      }
      room.append(box);
      const inside = () => Math.max(box.clientWidth - 24, 200);
      const { lists, bands } = columns(chart, table);
      const plot = new uPlot(options(chart, lists, bands, inside()), lists, box);
      plots.push({ plot, inside });
    }
  }

  const fit = () => plots.forEach(({ plot, inside }) => plot.setSize({ width: inside(), height: 220 }));

  draw(data.evaluations, data.tables[1], "evaluation-charts");
  draw(data.training, data.tables[0], "training-charts");
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(fit, 100); });

  // ---- dark and light; a file that is opened from a disk may have no storage

  const store = { get(key) { try { return sessionStorage.getItem(key); } catch { return null; } }, set(key, text) { try { sessionStorage.setItem(key, text); } catch { /* shown all the same */ } } };
  if (store.get("theme")) root.dataset.theme = store.get("theme");
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    store.set("theme", root.dataset.theme);
    plots.forEach(({ plot }) => plot.redraw());
  });

  // ---- the filter

  const form = document.getElementById("filter");
  const fields = ["text", "step", "task", "outcome", "least", "most"].map((name) => document.getElementById(`filter-${name}`));
  if (form) {
    const groups = [...document.querySelectorAll(".group")].map((box) => ({ box, words: box.textContent.toLowerCase() }));
    const apply = () => {
      const [text, step, task, outcome, least, most] = fields.map((field) => field.value);
      const words = text.toLowerCase();
      let left = 0;
      for (const group of groups) {
        const of = group.box.dataset;
        const mean = of.mean === "" ? NaN : Number(of.mean);
        const fits = group.words.includes(words) && (!step || of.step === step) && (!task || of.task === task)
          && (!outcome || of.outcome === outcome) && (least === "" || mean >= Number(least)) && (most === "" || mean <= Number(most));
        group.box.hidden = !fits;
        left += fits;
      }
      document.getElementById("filter-count").textContent = `${left} of ${groups.length} groups`;
      store.set("filter", JSON.stringify(fields.map((field) => field.value)));
    };
    if (root.hasAttribute("data-live") && store.get("filter")) {
      JSON.parse(store.get("filter")).forEach((text, at) => { fields[at].value = text; });
    }
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  // ---- a live page: the server is asked for a stamp, and the page is read again when it has changed

  if (root.hasAttribute("data-live")) {
    const sign = document.getElementById("live");
    sign.hidden = false;
    if (store.get("scroll")) scrollTo(0, Number(store.get("scroll")));
    let first = null;
    const ask = async () => {
      try {
        const stamp = await (await fetch("/stamp", { cache: "no-store" })).text();
        sign.textContent = "live";
        if (first !== null && stamp !== first) {
          store.set("scroll", String(scrollY));
          location.reload();
          return;
        }
        first = stamp;
      } catch {
        sign.textContent = "the server has ended";
      }
      setTimeout(ask, 3000);
    };
    ask();
  }
})();
