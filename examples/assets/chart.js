"use strict";

const SAMPLES = 120;            // points of a chart: one minute, with two points a second

// A chart of the last minute.

class Chart {
  constructor(canvas, { stacked = false } = {}) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.stacked = stacked;
    this.legend = [...canvas.parentElement.querySelectorAll(".legend span")];
    this.title = canvas.parentElement.querySelector("h3").textContent;
    this.points = [];
    this.marks = [];
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  push(...values) {
    this.points.push(values);
    if (this.points.length > SAMPLES) {
      this.points.shift();
      this.marks = this.marks.map((mark) => mark - 1).filter((mark) => mark >= 0);
    }
    this.draw();
    const now = values.map((value, index) => `${this.legend[index].textContent} ${integer.format(value)}`).join(", ");
    this.canvas.ariaLabel = `${this.title}: now ${now}.`;
  }

  // Draws a line at this moment from now on.
  mark() {
    if (this.points.length > 0) this.marks.push(this.points.length);
  }

  draw() {
    const { width, height } = this.canvas.getBoundingClientRect();
    if (width === 0) return;
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const pen = this.context;
    pen.scale(ratio, ratio);
    const style = getComputedStyle(this.canvas);
    pen.font = `12px ${style.fontFamily}`;
    const quiet = colors.quiet, lines = colors.line;
    const left = 44, right = width - 4, top = 8, bottom = height - 20;
    const highest = niceCeiling(Math.max(1e-9, ...this.points.map((values) => this.stacked ? values.reduce((sum, value) => sum + value, 0) : Math.max(...values))));
    const x = (index) => right - (this.points.length - 1 - index) * (right - left) / (SAMPLES - 1);
    const y = (value) => bottom - (value / highest) * (bottom - top);

    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const share of [0, 0.5, 1]) {
      pen.fillStyle = lines;
      pen.fillRect(left, Math.round(y(share * highest)), right - left, 1);
      pen.fillStyle = quiet;
      pen.fillText(shortNumber(share * highest), left - 6, y(share * highest));
    }
    pen.textBaseline = "alphabetic";
    pen.fillText("now", right, height - 4);
    pen.textAlign = "left";
    pen.fillText("60 s ago", left, height - 4);

    const bases = this.points.map(() => 0);
    for (let series = 0; series < this.legend.length; series++) {
      const color = colors[this.legend[series].dataset.color];
      const tops = this.points.map((values, index) => bases[index] + values[series]);
      pen.beginPath();
      tops.forEach((value, index) => pen.lineTo(x(index), y(value)));
      pen.strokeStyle = color;
      pen.lineWidth = 1.75;
      pen.lineJoin = "round";
      pen.stroke();
      for (let index = tops.length - 1; index >= 0; index--) pen.lineTo(x(index), y(bases[index]));
      pen.closePath();
      pen.globalAlpha = this.stacked ? 0.35 : 0.15;
      pen.fillStyle = color;
      if (tops.length > 1) pen.fill();
      pen.globalAlpha = 1;
      if (this.stacked) tops.forEach((value, index) => { bases[index] = value; });
    }
    pen.setLineDash([3, 3]);
    pen.strokeStyle = quiet;
    pen.lineWidth = 1;
    for (const mark of this.marks) {
      pen.beginPath();
      pen.moveTo(Math.round(x(mark)) + 0.5, top);
      pen.lineTo(Math.round(x(mark)) + 0.5, bottom);
      pen.stroke();
    }
    pen.setLineDash([]);
  }
}

// The next number of 1, 2, 5, 10, 20, 50, ...
function niceCeiling(value) {
  const magnitude = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * magnitude).find((step) => step >= value * 0.999);
}

function shortNumber(value) {
  if (value >= 1_000) return `${+(value / 1_000).toFixed(1)}k`;
  return `${+value.toPrecision(2)}`;
}

// A canvas has no access to the variables of the style sheet, so this reads what they are for the present colours.
const colors = {};

function readColors() {
  const probe = document.body.appendChild(element("span", { hidden: true }));
  for (const name of ["quiet", "line", "arrived", "replaced"]) {
    probe.style.color = `var(--${name})`;
    colors[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}
