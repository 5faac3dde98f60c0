// The reference client: runs the operations that its arguments name, and writes what it gets as lines of JSON.
import { createClient } from "graphql-ws";
import WebSocket from "ws";

const [url, payload, ...queries] = process.argv.slice(2);
const write = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const client = createClient({
    url,
    webSocketImpl: WebSocket,
    connectionParams: JSON.parse(payload),
    retryAttempts: 0,
    lazyCloseTimeout: 0,
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
