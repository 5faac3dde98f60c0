// A client of the npm package ws: sends what lines of JSON on its standard input say, and writes what it receives.
const readline = require("node:readline");
const WebSocket = require("ws");

const [url, options] = process.argv.slice(2);
const socket = new WebSocket(url, { perMessageDeflate: { threshold: 0, ...JSON.parse(options) } });
const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");

socket.on("open", () => {
    write({ extensions: socket.extensions });
    readline.createInterface({ input: process.stdin }).on("line", (line) => {
        const message = JSON.parse(line);
        socket.send("text" in message ? message.text : Buffer.from(message.binary, "base64"));
    });
});
socket.on("message", (data, isBinary) => {
    write(isBinary ? { binary: data.toString("base64") } : { text: data.toString() });
});
socket.on("close", (code) => {
    process.stderr.write(`closed with ${code}\n`);
    process.exit(code === 1001 ? 0 : 1);
});
