// A client of the npm package ws. It sends messages that it reads as lines of JSON, and writes those that it receives.
const readline = require("node:readline");
const WebSocket = require("ws");

const [url, options] = process.argv.slice(2);
const socket = new WebSocket(url, { perMessageDeflate: JSON.parse(options) });
const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");

socket.on("open", () => {
    write({ extensions: socket.extensions });
    readline.createInterface({ input: process.stdin }).on("line", (line) => {
        const { fragments, binary } = JSON.parse(line);
        fragments.forEach((fragment, index) => {
            if (index > 0) socket.ping();
            socket.send(Buffer.from(fragment, "base64"), { binary, fin: index === fragments.length - 1 });
        });
    });
});
socket.on("message", (data, binary) => write({ binary, data: data.toString("base64") }));
socket.on("close", (code) => {
    process.stderr.write(`closed with ${code}\n`);
    process.exit(code === 1001 ? 0 : 1);
});
