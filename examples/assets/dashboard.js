"use strict";

const SAMPLE = 500;             // milliseconds between two points of the charts
const BOARD_EVERY = 100;
const SUMMARY_EVERY = 20_000;

const integer = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

// The prices that this tab reads.

let symbols = [];         // of each: its name, its newest price, and the list item that shows it
let readerId = 0;
let clockOffset = null;   // what to add to performance.now() for the clock of the server
let bestTrip = Infinity;
let isSlow = false;
let rate = 0, slowRate = 0;
const counts = { arrived: 0, replaced: 0, aged: 0, age: 0 };   // prices, prices with a known age, the sum of their ages

const prices = new Link("", {
  probe: 0,
  onstate: showState,
  onmessage(message) {
    if (Array.isArray(message)) takePrice(...message);
    else begin(message);
  },
});

function begin(message) {
  readerId = message.reader;
  rate = message.rate;
  slowRate = message.slow_rate;
  symbols = message.symbols.map((name) => ({ name, number: null, price: 0, before: 0, skipped: 0, changed: false, line: boardLine(name) }));
  $("board").querySelector("ul").replaceChildren(...symbols.map(({ line }) => line));
  explain();
}

function takePrice(index, price, number, time) {
  const symbol = symbols[index];
  const skipped = symbol.number === null ? 0 : number - symbol.number - 1;
  counts.arrived += 1;
  counts.replaced += skipped;
  if (clockOffset !== null) {
    counts.aged += 1;
    counts.age += Math.max(performance.now() + clockOffset - time, 0);
  }
  symbol.before = symbol.number === null ? price : symbol.price;
  symbol.number = number;
  symbol.price = price;
  symbol.skipped = skipped;
  symbol.changed = true;
}

function boardLine(name) {
  return element("li", {},
    element("span", { className: "symbol", textContent: name }), element("span", { className: "price" }),
    element("span", { className: "move" }), element("span", { className: "skipped" }));
}

function showBoard() {
  for (const symbol of symbols) {
    if (!symbol.changed) continue;
    symbol.changed = false;
    const { line, price, before, skipped } = symbol;
    const [, priceCell, moveCell, skippedCell] = line.children;
    priceCell.textContent = price.toFixed(2);
    const move = price - before;
    moveCell.textContent = `${move < 0 ? "▼" : "▲"} ${Math.abs(move).toFixed(2)}`;
    line.dataset.move = move < 0 ? "down" : "up";
    skippedCell.textContent = skipped > 0 ? `+${skipped}` : "";
    if (skipped > 0) line.dataset.skipped = "";
    else delete line.dataset.skipped;
  }
}

const FALLEN_BEHIND = {
  latest: "While prices wait, a newer price of a symbol replaces the older one. Fewer prices arrive, and none of them is old.",
  drop_oldest: "When the queue is full, the prices that have waited longest are dropped. Each of the others waits until all before it have left.",
  drop_newest: "When the queue is full, new prices are dropped. Those that arrive have waited in the whole queue.",
  close: "When the queue is full, the server closes the connection with 1013. The page connects anew, after a longer delay each time.",
};

function explain() {
  $("explanation").textContent = isSlow
    ? `The server sends ${integer.format(rate)} prices a second. This tab gets ${integer.format(slowRate)} bytes a second, as over a bad network. ${FALLEN_BEHIND[$("policy").value]}`
    : `The server sends ${integer.format(rate)} prices a second. This tab keeps up, so all of them arrive.`;
}

function connectToPrices() {
  charts.prices.mark();
  charts.age.mark();
  prices.connect(`/dashboard/prices/${$("policy").value}${isSlow ? "/slow" : ""}`);
  explain();
}

// The statistics of the server, which the page asks for.

let askedAt = null;
let former = null;

const statistics = new Link("/dashboard/statistics", {
  probe: 0,
  onstate: showState,
  onopen() { askedAt = null; former = null; },
  onmessage: takeStatistics,
});

function ask() {
  if (!statistics.isOpen || askedAt !== null) return;
  askedAt = performance.now();
  statistics.ask(readerId);
}

function takeStatistics({ time, cpu, waiting, hubs }) {
  const at = performance.now();
  const trip = at - askedAt;
  // The shortest round trip tells most exactly what time it is at the server. Clocks drift, so a later one may be longer.
  bestTrip *= 1.01;
  if (trip < bestTrip) {
    bestTrip = trip;
    clockOffset = time - (askedAt + trip / 2);
  }
  askedAt = null;
  const sample = { at, cpu, hubs, ...counts };
  if (former !== null) show(former, sample, waiting, trip);
  former = sample;
}

const charts = {
  prices: new Chart($("prices-chart"), { stacked: true }),
  age: new Chart($("age-chart")),
  messages: new Chart($("messages-chart"), { stacked: true }),
  bytes: new Chart($("bytes-chart")),
  cpu: new Chart($("cpu-chart")),
  trip: new Chart($("trip-chart")),
};

// Shows what has happened between two samples.
function show(former, sample, waiting, trip) {
  const seconds = (sample.at - former.at) / 1000;
  const perSecond = (value) => (value(sample) - value(former)) / seconds;
  const arrived = perSecond(({ arrived }) => arrived);
  const replaced = perSecond(({ replaced }) => replaced);
  const age = (sample.age - former.age) / Math.max(sample.aged - former.aged, 1);
  $("arrived").textContent = integer.format(arrived);
  $("replaced").textContent = integer.format(replaced);
  $("age").textContent = age < 10 ? age.toFixed(1) : integer.format(age);
  $("waiting").textContent = integer.format(waiting);
  charts.prices.push(arrived, replaced);
  charts.age.push(age);
  charts.trip.push(trip);
  charts.cpu.push(100 * perSecond(({ cpu }) => cpu));

  const sum = (value) => perSecond(({ hubs }) => Object.values(hubs).reduce((total, hub) => total + value(hub), 0));
  charts.messages.push(sum((hub) => hub.messages_delivered), sum(droppedBy));
  charts.bytes.push(sum((hub) => hub.bytes_sent) / 1000);
  $("hubs").replaceChildren(...Object.entries(sample.hubs).map(([name, hub]) => {
    const rateOf = (value) => integer.format(perSecond(({ hubs }) => value(hubs[name])));
    const cells = [
      integer.format(hub.connections), integer.format(hub.rooms), rateOf((each) => each.messages_received),
      rateOf((each) => each.messages_delivered), rateOf((each) => each.dropped.replaced),
      integer.format(droppedBy(hub) - hub.dropped.replaced), integer.format(hub.messages_pending),
      `${rateOf((each) => each.bytes_sent / 1000)} kB`,
    ];
    return element("tr", {}, element("th", { scope: "row", textContent: name }), ...cells.map((textContent) => element("td", { textContent })));
  }));
  summarise(arrived, replaced, age);
}

function droppedBy(hub) {
  return Object.values(hub.dropped).reduce((total, dropped) => total + dropped, 0);
}

// Screen readers read a sentence now and then, since everything else on the page changes all the time.
let summarisedAt = performance.now();

function summarise(arrived, replaced, age) {
  if (performance.now() - summarisedAt < SUMMARY_EVERY) return;
  summarisedAt = performance.now();
  $("summary").textContent = `Per second, ${integer.format(arrived)} prices arrive and ${integer.format(replaced)} are replaced. They are ${integer.format(age)} milliseconds old.`;
}

// The page.

function showState() {
  const isOpen = prices.isOpen && statistics.isOpen;
  if (isOpen === ($("state").dataset.state === "open")) return;
  $("state").dataset.state = isOpen ? "open" : "connecting";
  $("state").textContent = isOpen ? "Connected" : "Connecting";
}

$("slow").addEventListener("click", () => {
  isSlow = !isSlow;
  $("slow").ariaChecked = String(isSlow);
  connectToPrices();
});
$("policy").addEventListener("change", connectToPrices);

function redraw() {
  readColors();
  for (const chart of Object.values(charts)) chart.draw();
}

// The network has changed: find out at once whether the connections still work.
function recover() {
  prices.retry();
  statistics.retry();
}

addEventListener("online", recover);
addEventListener("offline", recover);
addEventListener("themechange", redraw);
redraw();
connectToPrices();
statistics.connect();
setInterval(ask, SAMPLE);
setInterval(showBoard, BOARD_EVERY);
