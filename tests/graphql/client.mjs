// The reference client. It runs the operations in its arguments, and writes the results as lines of JSON.
import { createClient } from "graphql-ws";
import WebSocket from "ws";

const [url, given, ...queries] = process.argv.slice(2);
const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");
// If there are several payloads, each is for one connection: the client connects again when it is closed.
const payloads = [JSON.parse(given)].flat();
let connections = 0;
const client = createClient({
    url,
    webSocketImpl: WebSocket,
    connectionParams: () => payloads[Math.min(connections++, payloads.length - 1)],
    retryAttempts: payloads.length - 1,
    retryWait: async () => {},
    lazyCloseTimeout: 0,
    on: { closed: (event) => payloads.length > 1 && write({ closed: event.code }) },
});

await Promise.all(
    queries.map(
        (query, index) =>
            new Promise((resolve) => {
                client.subscribe(
                    { query },
                    {
                        next: (value) => write({ index, next: value }),
                        error: (error) => {
                            const code = error.code ?? null;
                            write({ index, error: Array.isArray(error) ? error.map((one) => one.message) : code });
                            resolve();
                        },
                        complete: () => {
                            write({ index, complete: true });
                            resolve();
                        },
                    },
                );
            }),
    ),
);
await client.dispose();
