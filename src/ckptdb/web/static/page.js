"use strict";
/* Draws what the data says, and copies paths. Nothing is fetched, nothing is sent. */
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const runs = data.runs;
  const STATUS = { f: "on disk", d: "deleted", t: "unfinished" };
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "pentagon", "cross"];
  const SHOWN_AT_FIRST = 12;
  const BARS = 12;
  const LONGEST_LABEL = 28;
  const CONFIG = {
    displayModeBar: false, displaylogo: false, responsive: true, showTips: false,
    // Plotly offers to send what it shows to a service; here nothing leaves the machine.
    showSendToCloud: false, showEditInChartStudio: false, plotlyServerURL: "",
  };

  /* --- words ---------------------------------------------------------------------------- */

  // Plotly reads a little HTML in every text, fills in %{…}, and takes $…$ for TeX.
  const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", $: "&#36;", "%": "&#37;" };
  const plain = (text) => String(text).replace(/[&<>$%]/g, (sign) => ENTITIES[sign]);
  const short = (text, most) => (Array.from(text).length > most ? `${Array.from(text).slice(0, most - 1).join("")}…` : text);
  const number = (value) => String(Number(value.toPrecision(6)));
  const moment = (ms) => new Date(ms).toISOString().slice(0, 16).replace("T", " ");
  const bytes = (size) => {
    const units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let unit = 0;
    for (; size >= 1000 && unit < units.length - 1; unit += 1) size /= 1000;
    return `${unit ? size.toFixed(1) : size} ${units[unit]}`;
  };
  const span = (seconds) => {
    const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"]].find(([s]) => seconds >= s);
    return seconds === size ? unit : `${seconds / size} ${unit}s`;
  };

  // What is shown of a point's path, and what is copied: they differ where a terminal would obey.
  const paths = (run, i) => {
    if (run.paths) return run.paths[i];
    const path = `${run.directory}/${run.status[i] === "t" ? "tmp_" : ""}step_${run.step[i]}`;
    return [path, path];
  };

  const MOST_METRICS = 24;
  const describe = (run, i) => {
    const lines = [
      `<b>${plain(short(run.label, 80))}</b>`,
      `step ${run.step[i]} · ${STATUS[run.status[i]]}${i === run.best ? " · best" : ""}${i === run.latest ? " · latest" : ""}`,
    ];
    const measured = data.metrics.map((name, m) => [name, run.value[m] && run.value[m][i]]).filter(([, value]) => typeof value === "number");
    for (const [name, value] of measured.slice(0, MOST_METRICS)) lines.push(`${plain(short(name, 60))}: ${number(value)}`);
    if (measured.length > MOST_METRICS) lines.push(`and ${measured.length - MOST_METRICS} more`);
    if (run.size[i] !== null) lines.push(bytes(run.size[i]));
    if (run.at[i] !== null) lines.push(moment(run.at[i]));
    if (run.note[i]) lines.push(plain(short(run.note[i], 120)));
    lines.push(plain(short(paths(run, i)[0], 120)));
    return lines.join("<br>");
  };

  /* --- copying -------------------------------------------------------------------------- */

  let quiet;
  const say = (text) => {
    $("said").textContent = text;
    $("said").classList.add("shown");
    clearTimeout(quiet);
    quiet = setTimeout(() => $("said").classList.remove("shown"), 2500);
  };
  const copyByHand = (text) => {
    // Browsers keep the clipboard from pages that came over plain HTTP from another machine.
    const field = document.createElement("textarea");
    field.value = text;
    field.setAttribute("readonly", "");
    document.body.append(field);
    const before = document.activeElement;
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (before) before.focus({ preventScroll: true });
    return done;
  };
  const copy = async (text) => {
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      done = copyByHand(text);
    }
    say(done ? `Copied ${text}` : `Not copied: ${text}`);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button.dataset.copy);
  });

  /* --- colours -------------------------------------------------------------------------- */

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const look = (index) => ({
    colour: colour(`c${index % 6}`),
    // Another shape for every further round of colours, and for neighbours within a round.
    symbol: SYMBOLS[(index + Math.floor(index / 6)) % SYMBOLS.length],
  });

  /* --- figures -------------------------------------------------------------------------- */

  const layout = (more) => {
    const soft = colour("soft");
    const axis = { gridcolor: colour("line"), zeroline: false, linecolor: colour("line"), tickcolor: colour("line"), automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: soft },
      margin: { l: 8, r: 12, t: 12, b: 8 }, showlegend: false, hovermode: "closest",
      hoverlabel: { bgcolor: colour("card"), bordercolor: soft, font: { color: colour("text"), size: 12 }, align: "left" },
      // One finger scrolls the page.
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
    };
  };
  const title = (text) => ({ title: { text: plain(short(text, 60)), standoff: 8 } });

  // Steps that a number cannot hold are texts. Drawn from the first step on, they are exact.
  const exact = runs.some((run) => run.step.some((step) => typeof step === "string"));
  const steps = exact ? runs.flatMap((run) => run.step.map(BigInt)) : [];
  const first = steps.reduce((least, step) => (step < least ? step : least), steps[0]);
  const last = steps.reduce((most, step) => (step > most ? step : most), steps[0]);
  const place = (step) => (exact ? Number(BigInt(step) - first) : step);
  const stepTicks = () => {
    if (!exact) return {};
    const parts = [0n, 1n, 2n, 3n].map((n) => ((last - first) * n) / 3n);
    const values = [...new Set(parts.map(String))].map(BigInt);
    return { tickvals: values.map(Number), ticktext: values.map((value) => String(first + value)) };
  };

  // The span of what is drawn must be a number, too; a power of two takes no digit away.
  const HUGE = 1e200;
  const scaled = (metric) => {
    const values = metric === null ? [] : runs.flatMap((run) => run.value[metric] || []).filter((value) => value !== null);
    const low = values.reduce((a, b) => Math.min(a, b), Infinity);
    const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!(Math.max(Math.abs(low), Math.abs(high)) > HUGE) || !values.length) return { scale: 1, ticks: {} };
    const scale = 2 ** -400;
    const ticks = [...new Set([0, 0.25, 0.5, 0.75, 1].map((part) => low * (1 - part) + high * part))];
    return { scale, ticks: { tickvals: ticks.map((tick) => tick * scale), ticktext: ticks.map(number) } };
  };

  const curves = (metric, visible, scale) => runs.flatMap((run, index) => {
    const values = metric === null ? null : run.value[metric];
    if (!values || !visible.has(index)) return [];
    const { colour: tint, symbol } = look(index);
    const has = run.step.map((_, i) => i).filter((i) => values[i] !== null);
    const trace = (points, more) => ({
      type: "scatter", x: points.map((i) => place(run.step[i])), y: points.map((i) => values[i] * scale),
      customdata: points.map((i) => [index, i]), hovertext: points.map((i) => describe(run, i)),
      hoverinfo: "text", name: "", ...more,
    });
    const kept = has.filter((i) => run.status[i] === "f" && i !== run.best);
    const other = has.filter((i) => run.status[i] !== "f");
    const best = has.filter((i) => i === run.best);
    const found = [
      trace(has, { mode: "lines", line: { color: tint, width: 1.25 }, opacity: 0.45, hoverinfo: "skip", meta: "line" }),
      trace(other, {
        mode: "markers", meta: "faint",
        marker: { color: tint, size: 5, opacity: 0.45, symbol: other.map((i) => (run.status[i] === "t" ? "square-open-dot" : `${symbol}-open`)) },
      }),
      trace(kept, { mode: "markers", meta: "kept", marker: { color: tint, size: 10, symbol, line: { color: colour("card"), width: 1.5 } } }),
      trace(best, { mode: "markers", meta: "best", marker: { color: tint, size: 17, symbol: "star", line: { color: colour("card"), width: 1.5 } } }),
    ];
    return found.filter((one) => one.x.length);
  });

  const draw = (id, traces, made, says) => {
    const chart = $(id);
    chart.setAttribute("role", "img");
    chart.setAttribute("aria-label", says);
    const fresh = !chart.classList.contains("js-plotly-plot");
    Plotly.react(chart, traces, made, CONFIG);
    if (fresh) {
      chart.on("plotly_click", ({ points }) => {
        const at = points[0].customdata;
        if (at) copy(paths(runs[at[0]], at[1])[1]);
      });
    }
  };

  const drawCurves = (id, metric) => {
    const name = metric === null ? "" : data.metrics[metric];
    const { scale, ticks } = scaled(metric);
    const traces = curves(metric, visible, scale);
    const told = traces.filter((trace) => trace.meta !== "line").reduce((sum, trace) => sum + trace.x.length, 0);
    draw(id, traces, layout({ xaxis: { ...title("step"), type: "linear", ...stepTicks() }, yaxis: { ...title(name), type: "linear", ...ticks } }),
      `Chart of ${name} by step: ${told} checkpoints of ${visible.size} runs. The tables name the best and the latest of each.`);
  };

  const drawDisk = () => {
    const largest = runs.map((run, index) => ({ run, index })).filter(({ run }) => run.bytes).sort((a, b) => b.run.bytes - a.run.bytes);
    const shown = largest.slice(0, BARS);
    const rest = largest.slice(BARS).reduce((sum, { run }) => sum + run.bytes, 0);
    const bars = shown.map(({ run, index }) => ({ label: run.label, size: run.bytes, tint: look(index).colour, says: `${run.final} on disk` }));
    $("disk-rest").textContent = rest ? `${largest.length - BARS} more take ${bytes(rest)} together` : "";
    bars.reverse();
    $("chart-disk").style.height = `${Math.max(9, 2.2 + bars.length * 1.55)}rem`;
    // By position: a run called 2024-01-01 is neither a date nor a number.
    draw("chart-disk", [{
      type: "bar", orientation: "h", x: bars.map((bar) => bar.size), y: bars.map((_, i) => i),
      marker: { color: bars.map((bar) => bar.tint) }, hoverinfo: "text", textposition: "none", width: 0.62,
      hovertext: bars.map((bar) => `<b>${plain(short(bar.label, 80))}</b><br>${bytes(bar.size)}<br>${plain(bar.says)}`), name: "",
    }], layout({
      bargap: 0.35, dragmode: false,
      xaxis: { ...sizes(Math.max(...bars.map((bar) => bar.size), 1)), type: "linear", rangemode: "tozero", fixedrange: true },
      yaxis: { type: "linear", tickvals: bars.map((_, i) => i), ticktext: bars.map((bar) => plain(short(bar.label, LONGEST_LABEL))), showgrid: false, fixedrange: true },
    }), `Chart of disk space by run, the largest first: ${shown.slice(0, 5).map(({ run }) => `${run.label} ${bytes(run.bytes)}`).join(", ")}.`);
  };
  const sizes = (most) => {
    const base = 10 ** Math.floor(Math.log10(most / 3));
    const each = [1, 2, 5, 10].map((n) => n * base).find((n) => most / n <= 4);
    const values = [];
    for (let at = 0; at <= most + each / 2; at += each) values.push(at);
    return { tickvals: values, ticktext: values.map((value) => (value ? bytes(value).replace(".0 ", " ") : "0")) };
  };

  const drawSaves = () => {
    const { every, since, kept, deleted } = data.saves;
    const middle = since.map((ms) => new Date(ms + every * 500).toISOString());
    const bar = (counts, opacity, what) => ({
      type: "bar", x: middle, y: counts, width: since.map(() => every * 860), name: "", hoverinfo: "text", textposition: "none",
      marker: { color: colour("c0"), opacity },
      hovertext: counts.map((count, i) => `${moment(since[i])}<br>${count} ${what}`),
    });
    draw("chart-saves", [bar(kept, 1, "still on disk"), bar(deleted, 0.35, "deleted since")], layout({
      barmode: "stack", dragmode: false,
      xaxis: { type: "date", fixedrange: true, nticks: 5 },
      yaxis: { ...title(`saves each ${span(every)}`), type: "linear", rangemode: "tozero", fixedrange: true },
    }), `Chart of saves each ${span(every)}: ${kept.reduce((a, b) => a + b, 0)} still on disk, ${deleted.reduce((a, b) => a + b, 0)} deleted since.`);
  };

  /* --- what is chosen ------------------------------------------------------------------- */

  const recent = runs.map((_, i) => i).sort((a, b) => runs[b].active - runs[a].active || a - b);
  let visible = new Set(runs.length > SHOWN_AT_FIRST ? recent.slice(0, SHOWN_AT_FIRST) : recent);
  const measured = data.metrics.map((_, m) => m).filter((m) => runs.some((run) => run.value[m]));
  const chosen = { metric: measured.length ? measured[0] : null, other: measured.length > 1 ? measured[1] : null };

  const MARKS = {
    circle: "M6 1a5 5 0 1 0 .01 0z", square: "M2 2h8v8h-8z", diamond: "M6 .5l5.5 5.5-5.5 5.5-5.5-5.5z",
    "triangle-up": "M6 1l5.2 9.5h-10.4z", pentagon: "M6 .8l5.2 3.8-2 6.2h-6.4l-2-6.2z", cross: "M4 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
  };
  const mark = (index) => {
    const { colour: tint, symbol } = look(index);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    for (const [name, value] of [["width", 12], ["height", 12], ["viewBox", "0 0 12 12"], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
    path.setAttribute("d", MARKS[symbol]);
    path.setAttribute("fill", tint);
    svg.append(path);
    return svg;
  };

  const chips = () => {
    const box = document.querySelector(".chips");
    const all = visible.size === runs.length;
    const focused = [...box.children].indexOf(document.activeElement);
    const made = runs.map((run, index) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.className = "chip";
      chip.setAttribute("aria-pressed", String(visible.has(index)));
      chip.append(mark(index), document.createTextNode(short(run.label, 60)));
      chip.addEventListener("click", () => {
        if (!visible.delete(index)) visible.add(index);
        drawChosen();
      });
      return chip;
    });
    if (runs.length > 1) {
      const toggle = document.createElement("button");
      toggle.type = "button";
      toggle.className = "chip all";
      toggle.textContent = all ? "Show none" : `Show all ${runs.length}`;
      toggle.addEventListener("click", () => {
        visible = new Set(all ? [] : runs.keys());
        drawChosen();
      });
      made.unshift(toggle);
    }
    box.replaceChildren(...made);
    if (focused >= 0) box.children[focused].focus({ preventScroll: true });
  };

  const select = (id, says) => {
    const field = $(id);
    field.replaceChildren(...measured.map((m) => new Option(short(data.metrics[m], 60), m, false, m === chosen[id])));
    const tell = () => { $(says).textContent = chosen[id] === null ? "" : data.directions[chosen[id]]; };
    field.addEventListener("change", () => {
      chosen[id] = Number(field.value);
      tell();
      drawCurves(`chart-${id}`, chosen[id]);
    });
    tell();
  };

  const drawChosen = () => {
    chips();
    drawCurves("chart-metric", chosen.metric);
    if (chosen.other !== null) drawCurves("chart-other", chosen.other);
  };
  const drawAll = () => {
    drawChosen();
    drawDisk();
    drawSaves();
  };

  const begin = () => {
    select("metric", "metric-says");
    select("other", "other-says");
    $("others").hidden = chosen.other === null;
    const drawn = runs.reduce((sum, run) => sum + run.step.length, 0);
    const total = runs.reduce((sum, run) => sum + run.total, 0);
    if (drawn < total) $("thinned").textContent = `${drawn.toLocaleString("en")} of ${total.toLocaleString("en")} points are drawn, the outstanding ones always`;
    drawAll();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    document.body.dataset.drawn = "yes";
  };

  /* --- Plotly --------------------------------------------------------------------------- */

  // In a report it lies packed: unpacked here, by the browser.
  const unpack = async () => {
    const packed = Uint8Array.from(atob($("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };

  if (!$("curves")) return;
  (async () => {
    if (!window.Plotly) await unpack();
    begin();
  })().catch((error) => {
    console.error(error);
    say("This browser cannot draw the charts; the tables say the same.");
  });
})();
