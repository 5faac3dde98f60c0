// Sends messages of these sizes, as text and as binary. Each is sent when the one before it has come back.
(url, sizes) => new Promise((resolve, reject) => {
    const wanted = [], echoed = [];
    for (const size of JSON.parse(sizes)) {
        const bytes = Uint8Array.from({ length: size }, (_, index) => index % 26 + 97);
        wanted.push({ name: `text ${size}`, sent: new TextDecoder().decode(bytes) });
        wanted.push({ name: `binary ${size}`, sent: bytes });
    }
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";

    function next() {
        if (echoed.length < wanted.length) socket.send(wanted[echoed.length].sent);
        else socket.close(4001, "done");
    }

    function isEqual(sent, received) {
        if (typeof sent === "string") return sent === received;
        if (!(received instanceof ArrayBuffer) || received.byteLength !== sent.length) return false;
        return new Uint8Array(received).every((byte, index) => byte === sent[index]);
    }

    socket.onopen = next;
    socket.onmessage = ({ data }) => {
        const { name, sent } = wanted[echoed.length];
        echoed.push(isEqual(sent, data) ? name : `${name} has changed`);
        next();
    };
    socket.onerror = () => reject(new Error("the connection has failed"));
    socket.onclose = ({ code, reason, wasClean }) => resolve({ echoed, closed: [code, reason, wasClean] });
})
