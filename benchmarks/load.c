/*
 * The load generator: a WebSocket client for many connections, single-threaded on epoll, which also reads the server's
 * CPU time at both ends of the measured window.
 *
 * Message n of a connection is message n modulo `ring_messages`, and carries that number. So every stream is periodic:
 * what is to be sent lies ready, masked, in one ring, and what must come back lies beside it. Sending is a pointer into
 * the first, and checking every byte received, the order included, is a comparison with the second. Compressed messages are
 * sent in the same way, and checked as deflated.h says.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "deflated.h"
#include "process.h"
#include "texts.h"

enum {
    BATCH = 1024,
    READ_SIZE = 512 * 1024,
    HEAD_SIZE = 2048,
    /* At once, while opening: below the backlog of 100 that asyncio gives its listeners. */
    OPENING = 32,
    STALL_SECONDS = 10,
    /* For opening the connections and for stopping, beyond warm-up and window. */
    GRACE_SECONDS = 60,
    WARMING_CONNECTIONS = 64,
    RING_BYTES = 256 * 1024,
    LONGEST_TICK = 160,
};

/* The key and its answer of RFC 6455 section 1.3. */
#define REQUEST                                                                                                        \
    "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"                               \
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
static const char plain_request[] = REQUEST "\r\n";
/* As browsers ask for it. */
static const char compressed_request[] =
    REQUEST "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
static const char accept_value[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

enum mode { ECHO, FANOUT, HANDSHAKE, IDLE };
static const char *const mode_names[] = {"echo", "fanout", "handshake", "idle"};

/* PER_CONNECTION: each connection's frames are decompressed. SAME_FRAMES: all connections must get the same. */
enum compression { PLAIN, PER_CONNECTION, SAME_FRAMES };
static const char *const compression_names[] = {"none", "each", "same"};

static struct {
    enum mode mode;
    enum text text;
    enum compression compression;
    int port, pid, connections, in_flight, size;
    bool binary;
    double warmup, seconds;
} options = {.connections = 1, .in_flight = 1, .size = 64, .warmup = 0.5, .seconds = 2};

enum state { REQUESTING, ANSWERING, OPEN };

struct conn {
    int fd;
    enum state state;
    bool writing; /* epoll watches for EPOLLOUT */
    uint32_t in_message, in_part;
    uint32_t out_message, out_part;
    uint32_t owed; /* messages to send, the one begun included */
    struct deflated *deflated; /* what comes compressed: owned, or that of all; or NULL */
    uint32_t received;         /* compressed messages */
    uint8_t *partial;          /* owned: the frame that has begun, or NULL */
    size_t partial_length, partial_capacity;
    uint32_t head_length;
    char *head;
};

static int epoll_fd;
static struct conn *conns;
static int conn_count, started, opened;
static uint8_t *read_buffer;
static uint64_t messages, deliveries, handshakes, received_bytes;

/* The outgoing ring is laid out twice, so that any run of up to a whole ring of messages is one piece. Message n of it is
 * from out_at[n] to out_at[n + 1]. */
static uint32_t ring_messages;
static uint8_t *out_ring, *in_ring;
static size_t *out_at;
static size_t in_frame;

/* The texts of the ring, for what comes compressed. */
static struct bytes *plain_texts;
static struct deflated same_frames;

/* fan-out: how many connections have received each message in flight */
static uint32_t *arrived;
static uint32_t oldest;

static void on_alarm(int signal)
{
    static const char text[] = "load: not finished within its time\n";
    (void)signal;
    (void)!write(STDERR_FILENO, text, sizeof text - 1);
    _exit(1);
}

static size_t write_header(uint8_t *at, uint8_t first, size_t length, uint8_t mask_bit)
{
    at[0] = 0x80 | first;
    if (length < 126) {
        at[1] = mask_bit | length;
        return 2;
    }
    int bytes = length < 65536 ? 2 : 8;
    at[1] = mask_bit | (bytes == 2 ? 126 : 127);
    for (int i = 0; i < bytes; i++)
        at[2 + i] = (uint64_t)length >> 8 * (bytes - 1 - i);
    return 2 + bytes;
}

/* Appends a masked frame to the outgoing ring; returns its length. */
static size_t write_masked(uint8_t *at, uint8_t first, const uint8_t *payload, size_t length)
{
    size_t header = write_header(at, first, length, 0x80);
    uint8_t *key = at + header;
    for (int i = 0; i < 4; i++)
        key[i] = random();
    for (size_t i = 0; i < length; i++)
        key[4 + i] = payload[i] ^ key[i & 3];
    return header + 4 + length;
}

static struct bytes make_text(uint32_t number)
{
    struct bytes text = {.length = options.text == TICK ? LONGEST_TICK : (size_t)options.size};
    text.start = must(malloc(text.length));
    if (options.text == TICK)
        text.length = write_tick(text.start, text.length, number);
    else if (options.text == JSON)
        write_json(text.start, text.length, number);
    else
        write_noise(text.start, text.length, number, options.binary);
    return text;
}

static void choose_ring_size(size_t frame)
{
    ring_messages = options.text == TICK ? 1024 : RING_BYTES / frame;
    if (ring_messages > 256 && options.text != TICK)
        ring_messages = 256;
    /* More than are in flight, so that a lost or repeated message shows. */
    if (ring_messages < 2u * options.in_flight + 1)
        ring_messages = 2 * options.in_flight + 1;
}

static void make_rings(void)
{
    uint8_t opcode = options.binary ? 2 : 1;
    uint8_t header[16];
    size_t in_header = write_header(header, opcode, options.size, 0);
    in_frame = in_header + options.size;
    choose_ring_size(in_frame + 4);
    size_t longest = options.size + LONGEST_TICK + 64;
    in_ring = must(malloc(ring_messages * in_frame));
    out_ring = must(malloc(2 * ring_messages * longest));
    out_at = must(calloc(2 * ring_messages + 1, sizeof *out_at));
    plain_texts = must(calloc(ring_messages, sizeof *plain_texts));
    arrived = must(calloc(ring_messages, sizeof *arrived));

    srandom(1);
    for (uint32_t n = 0; n < ring_messages; n++) {
        struct bytes text = make_text(n), payload = text;
        uint8_t first = opcode;
        if (options.compression != PLAIN) {
            payload = deflate_alone(text.start, text.length);
            must(payload.start);
            first |= 0x40;
        } else {
            memcpy(in_ring + n * in_frame, header, in_header);
            memcpy(in_ring + n * in_frame + in_header, text.start, text.length);
        }
        plain_texts[n] = text;
        out_at[n + 1] = out_at[n] + write_masked(out_ring + out_at[n], first, payload.start, payload.length);
    }
    size_t once = out_at[ring_messages];
    memcpy(out_ring + once, out_ring, once);
    for (uint32_t n = 1; n <= ring_messages; n++)
        out_at[ring_messages + n] = once + out_at[n];
    if (options.compression == SAME_FRAMES && !deflated_init(&same_frames, longest, true))
        fail("out of memory");
}

static void watch(struct conn *c, bool writing)
{
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
    c->writing = writing;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
}

static void send_owed(struct conn *c)
{
    if (c->owed) {
        size_t start = out_at[c->out_message] + c->out_part;
        size_t length = out_at[c->out_message + c->owed] - start;
        ssize_t sent = send(c->fd, out_ring + start, length, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN)
                fail("lost a connection while sending: %s", strerror(errno));
            sent = 0;
        }
        while (c->owed && start + sent >= out_at[c->out_message + 1]) {
            size_t whole = out_at[c->out_message + 1] - start;
            start += whole;
            sent -= whole;
            c->out_message++;
            c->owed--;
        }
        c->out_part = start + sent - out_at[c->out_message];
        c->out_message %= ring_messages;
    }
    if ((c->owed > 0) != c->writing)
        watch(c, c->owed > 0);
}

__attribute__((noreturn)) static void fail_on_bytes(const struct conn *c, const uint8_t *got, const uint8_t *wanted,
                                                    size_t length)
{
    size_t i = 0;
    while (i < length && got[i] == wanted[i])
        i++;
    size_t part = (wanted - in_ring + i) % in_frame;
    if (part == 0 && (got[i] & 15) == 8 && i + 4 <= length)
        fail("the server closed connection %ld with code %d", c - conns, got[i + 2] << 8 | got[i + 3]);
    fail("wrong frame on connection %ld: byte %zu of %zu is 0x%02x, not 0x%02x", c - conns, part, in_frame, got[i],
         wanted[i]);
}

/* Checks one compressed message, or one that a server has chosen to send plain. */
static void check_frame(struct conn *c, const uint8_t *frame, size_t length, size_t header)
{
    if ((frame[0] & 15) == 8)
        fail("the server closed connection %ld with code %d", c - conns, frame[header] << 8 | frame[header + 1]);
    struct bytes *text = &plain_texts[c->received % ring_messages];
    if (!is_right(c->deflated, c->received, frame, length, header, text->start, text->length))
        fail("wrong message %u on connection %ld", c->received, c - conns);
    c->received++;
}

/* Returns how long the frame is that begins here, or 0 where its header is not complete. */
static size_t frame_length(const uint8_t *at, size_t length, size_t *header)
{
    if (length < 2)
        return 0;
    int extended = at[1] < 126 ? 0 : at[1] == 126 ? 2 : 8;
    size_t payload = extended ? 0 : at[1];
    *header = 2 + extended;
    if (length < *header)
        return 0;
    for (int i = 0; i < extended; i++)
        payload = payload << 8 | at[2 + i];
    return *header + payload;
}

/* Checks whole frames. Returns their number, and their length in bytes in `done`. */
static uint32_t check_frames(struct conn *c, const uint8_t *at, size_t length, size_t *done)
{
    uint32_t count = 0;
    size_t header, frame;
    *done = 0;
    while ((frame = frame_length(at + *done, length - *done, &header)) && frame <= length - *done) {
        check_frame(c, at + *done, frame, header);
        *done += frame;
        count++;
    }
    return count;
}

static void keep_partial(struct conn *c, const uint8_t *rest, size_t length)
{
    if (c->partial_length + length > c->partial_capacity) {
        c->partial_capacity = c->partial_length + length + 4096;
        c->partial = must(realloc(c->partial, c->partial_capacity));
    }
    memmove(c->partial + c->partial_length, rest, length);
    c->partial_length += length;
}

static uint32_t receive_compressed(struct conn *c, const uint8_t *at, size_t length)
{
    size_t done;
    if (!c->partial_length) {
        uint32_t count = check_frames(c, at, length, &done);
        if (done < length)
            keep_partial(c, at + done, length - done);
        return count;
    }
    keep_partial(c, at, length);
    uint32_t count = check_frames(c, c->partial, c->partial_length, &done);
    size_t rest = c->partial_length - done;
    c->partial_length = 0;
    keep_partial(c, c->partial + done, rest);
    return count;
}

/* Checks what has arrived; returns how many messages it completes. */
static uint32_t receive(struct conn *c)
{
    ssize_t got = recv(c->fd, read_buffer, READ_SIZE, 0);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN)
            return 0;
        fail("lost connection %ld: %s", c - conns, got ? strerror(errno) : "closed by the server");
    }
    received_bytes += got;
    if (options.compression != PLAIN)
        return receive_compressed(c, read_buffer, got);
    size_t ring_size = ring_messages * in_frame;
    size_t at = c->in_message * in_frame + c->in_part;
    for (size_t done = 0; done < (size_t)got;) {
        size_t piece = (size_t)got - done;
        if (piece > ring_size - at)
            piece = ring_size - at;
        if (memcmp(read_buffer + done, in_ring + at, piece))
            fail_on_bytes(c, read_buffer + done, in_ring + at, piece);
        done += piece;
        at = 0;
    }
    uint32_t whole = (c->in_part + got) / in_frame;
    c->in_part = (c->in_part + got) % in_frame;
    return whole;
}

static void on_echo(struct conn *c)
{
    uint32_t whole = receive(c);
    c->in_message = (c->in_message + whole) % ring_messages;
    messages += whole;
    deliveries += whole;
    c->owed += whole;
    if (whole && !c->writing)
        send_owed(c);
}

/* The one message of an idle connection is back: its window is not needed again. */
static void on_exchanged(struct conn *c)
{
    deliveries += receive(c);
    if (c->received) {
        inflateEnd(&c->deflated->window);
        free(c->deflated->plain);
        free(c->deflated);
        c->deflated = NULL;
    }
}

/* The last connection is the sender. */
static void on_fanout(struct conn *c)
{
    uint32_t whole = receive(c);
    deliveries += whole;
    for (; whole; whole--) {
        arrived[c->in_message]++;
        c->in_message = (c->in_message + 1) % ring_messages;
    }
    struct conn *sender = &conns[conn_count - 1];
    uint32_t complete = 0;
    while (arrived[oldest] == (uint32_t)conn_count) {
        arrived[oldest] = 0;
        oldest = (oldest + 1) % ring_messages;
        complete++;
    }
    messages += complete;
    sender->owed += complete;
    if (complete && !sender->writing)
        send_owed(sender);
}

static void send_request(struct conn *c)
{
    const char *request = options.compression == PLAIN ? plain_request : compressed_request;
    ssize_t sent = send(c->fd, request, strlen(request), MSG_NOSIGNAL);
    if (sent == (ssize_t)strlen(request)) {
        c->state = ANSWERING;
        if (c->writing)
            watch(c, false);
    } else if (sent < 0 && errno == EAGAIN) {
        if (!c->writing)
            watch(c, true);
    } else {
        fail("cannot send a request: %s", sent < 0 ? strerror(errno) : "sent in part");
    }
}

static void open_connection(struct conn *c)
{
    static unsigned turn;
    int one = 1;
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    /* Many source addresses, and a reset at the end, so that ports do not run out. */
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + turn++ % 250)};
    struct sockaddr_in target = {
        .sin_family = AF_INET, .sin_port = htons(options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail("cannot open a socket: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source) < 0)
        fail("cannot bind a source address: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS)
        fail("cannot connect: %s", strerror(errno));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
    c->state = REQUESTING;
    c->writing = false;
    c->head_length = 0;
    if (!c->head)
        c->head = must(malloc(HEAD_SIZE));
    /* On loopback the connection usually stands already. */
    send_request(c);
}

static void check_answer(const char *head)
{
    static const char name[] = "\r\nSec-WebSocket-Accept:";
    if (strncmp(head, "HTTP/1.1 101 ", 13))
        fail("the upgrade was refused: %.*s", (int)strcspn(head, "\r"), head);
    const char *value = strcasestr(head, name);
    if (!value)
        fail("the upgrade was answered without Sec-WebSocket-Accept");
    value += sizeof name - 1;
    value += strspn(value, " \t");
    if (strncmp(value, accept_value, sizeof accept_value - 1))
        fail("wrong Sec-WebSocket-Accept: %.28s", value);
    bool compressed = strcasestr(head, "\r\nSec-WebSocket-Extensions: permessage-deflate");
    if (compressed != (options.compression != PLAIN))
        fail("compression was %s", compressed ? "agreed to, unasked" : "refused");
}

static void prepare_window(struct conn *c)
{
    c->deflated = &same_frames;
    if (options.compression == PER_CONNECTION) {
        c->deflated = must(malloc(sizeof *c->deflated));
        if (!deflated_init(c->deflated, options.size + LONGEST_TICK, false))
            fail("out of memory");
    }
}

/* Returns whether the connection is now open. */
static bool on_answer(struct conn *c)
{
    ssize_t got = recv(c->fd, c->head + c->head_length, HEAD_SIZE - 1 - c->head_length, 0);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN)
            return false;
        fail("lost a connection during its handshake: %s", got ? strerror(errno) : "closed by the server");
    }
    c->head_length += got;
    c->head[c->head_length] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if (c->head_length == HEAD_SIZE - 1)
            fail("the answer to the upgrade is too long");
        return false;
    }
    check_answer(c->head);
    if (end + 4 != c->head + c->head_length)
        fail("the server sent %ld bytes unasked", c->head + c->head_length - end - 4);
    c->state = OPEN;
    return true;
}

static void on_opened(struct conn *c)
{
    handshakes++;
    if (options.mode == HANDSHAKE) {
        messages++;
        close(c->fd);
        open_connection(c);
        return;
    }
    free(c->head);
    c->head = NULL;
    if (options.compression != PLAIN)
        prepare_window(c);
    opened++;
    if (started < conn_count)
        open_connection(&conns[started++]);
}

static void on_event(struct conn *c, uint32_t events)
{
    if (c->state == OPEN) {
        if (events & ~EPOLLOUT) {
            if (options.mode == ECHO)
                on_echo(c);
            else if (options.mode == FANOUT)
                on_fanout(c);
            else if (options.compression == PLAIN)
                fail("lost connection %ld, or it sent something unasked", c - conns);
            else
                on_exchanged(c);
        }
        if (events & EPOLLOUT && c->writing)
            send_owed(c);
        return;
    }
    if (c->state == REQUESTING && events & EPOLLOUT)
        send_request(c);
    if (events & ~EPOLLOUT && on_answer(c))
        on_opened(c);
}

/* Handles events for one turn of the loop, and fails if nothing has moved for too long. */
static double turn_loop(int timeout_ms)
{
    static struct epoll_event events[BATCH];
    static uint64_t progress;
    static double progress_at;
    int count = epoll_wait(epoll_fd, events, BATCH, timeout_ms);
    if (count < 0 && errno != EINTR)
        fail("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < count; i++)
        on_event(events[i].data.ptr, events[i].events);
    double at = now();
    if (deliveries + handshakes != progress || !progress_at) {
        progress = deliveries + handshakes;
        progress_at = at;
    } else if (options.mode != IDLE && at - progress_at > STALL_SECONDS) {
        fail("no progress for %d s (%llu messages so far)", STALL_SECONDS, (unsigned long long)messages);
    }
    return at;
}

static void open_connections(int count)
{
    conn_count = count;
    conns = must(calloc(count, sizeof *conns));
    started = opened = 0;
    while (started < count && started < OPENING)
        open_connection(&conns[started++]);
    double at = now();
    for (int before = 0; opened < count; before = opened) {
        double turned_at = turn_loop(100);
        if (opened != before)
            at = turned_at;
        else if (turned_at - at > STALL_SECONDS)
            fail("no handshake has finished for %d s (%d of %d connections are open)", STALL_SECONDS, opened, count);
    }
}

static void measure(void)
{
    double start = now() + options.warmup;
    while (turn_loop(100) < start)
        ;
    uint64_t messages_before = messages, deliveries_before = deliveries, bytes_before = received_bytes;
    struct cpu before = server_cpu(options.pid);
    double own_before = own_cpu();
    start = now();
    while (turn_loop(100) < start + options.seconds)
        ;
    double seconds = now() - start;
    struct cpu after = server_cpu(options.pid);
    double own = own_cpu() - own_before;
    uint64_t message_count = messages - messages_before;
    uint64_t delivery_count = options.mode == HANDSHAKE ? message_count : deliveries - deliveries_before;
    if (!delivery_count)
        fail("nothing was delivered in the measured window");
    double cpu = after.total - before.total;
    printf("{\"mode\": \"%s\", \"messages\": %llu, \"deliveries\": %llu, \"seconds\": %.4f, "
           "\"per_second\": %.1f, \"cpu_us_per_message\": %.4f, \"cpu_us_per_delivery\": %.4f, "
           "\"server_cpu_seconds\": %.4f, \"server_user_seconds\": %.2f, \"server_system_seconds\": %.2f, "
           "\"server_busy\": %.3f, \"load_busy\": %.3f, \"bytes_per_delivery\": %.2f}\n",
           mode_names[options.mode], (unsigned long long)message_count, (unsigned long long)delivery_count, seconds,
           delivery_count / seconds, message_count ? cpu * 1e6 / message_count : 0, cpu * 1e6 / delivery_count, cpu,
           after.user - before.user, after.system - before.system, cpu / seconds, own / seconds,
           (double)(received_bytes - bytes_before) / delivery_count);
}

/* Each connection sends one message and gets it back. */
static void exchange_messages(void)
{
    uint64_t before = deliveries;
    for (int i = 0; i < conn_count; i++) {
        conns[i].owed = 1;
        send_owed(&conns[i]);
        while (deliveries - before + OPENING < (uint64_t)i)
            turn_loop(100);
    }
    while (deliveries - before < (uint64_t)conn_count)
        turn_loop(100);
}

static void hold_idle(void)
{
    int count = options.connections;
    if (options.compression != PLAIN)
        options.compression = PER_CONNECTION;
    /* The first connections make the server load code and grow pools, once. */
    open_connections(WARMING_CONNECTIONS);
    for (int i = 0; i < WARMING_CONNECTIONS; i++)
        close(conns[i].fd);
    free(conns);
    usleep(300 * 1000);
    long before = server_resident_kb(options.pid);
    double start = now();
    open_connections(count);
    if (options.compression != PLAIN)
        exchange_messages();
    double seconds = now() - start;
    printf("ready\n");
    fflush(stdout);

    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    /* epoll refuses /dev/null, for one: such input has no end to wait for. */
    bool held = epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event) == 0;
    for (char byte; held;) {
        struct epoll_event next;
        if (epoll_wait(epoll_fd, &next, 1, -1) < 1)
            continue;
        if (next.data.ptr)
            on_event(next.data.ptr, next.events);
        else
            held = read(STDIN_FILENO, &byte, 1) > 0;
    }
    long after = server_resident_kb(options.pid);
    printf("{\"mode\": \"idle\", \"messages\": %d, \"deliveries\": 0, \"seconds\": %.4f, \"resident_before_kb\": %ld, "
           "\"resident_after_kb\": %ld, \"resident_kb_per_connection\": %.4f}\n",
           count, seconds, before, after, (double)(after - before) / count);
}

__attribute__((noreturn)) static void usage(void)
{
    fprintf(stderr,
            "usage: load echo|fanout|handshake|idle --port N [--pid SERVER] [--connections N] [--in-flight K]\n"
            "            [--size BYTES] [--binary] [--warmup SECONDS] [--seconds SECONDS]\n"
            "            [--text noise|json|tick] [--compression none|each|same]\n"
            "In fanout mode one more connection is the sender. In handshake mode --connections are tried at a time.\n"
            "In idle mode the connections are held, once \"ready\" is printed, until stdin ends; with compression\n"
            "each has sent a message and has got it back by then.\n");
    exit(2);
}

static unsigned index_of(const char *name, const char *const *names, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (!strcmp(name, names[i]))
            return i;
    usage();
}

static void read_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, 0, 'p'},    {"pid", 1, 0, 'i'},  {"connections", 1, 0, 'c'}, {"in-flight", 1, 0, 'k'},
        {"size", 1, 0, 's'},    {"binary", 0, 0, 'b'}, {"warmup", 1, 0, 'w'},    {"seconds", 1, 0, 't'},
        {"text", 1, 0, 'x'},    {"compression", 1, 0, 'z'},
        {NULL, 0, NULL, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'p':
            options.port = atoi(optarg);
            break;
        case 'i':
            options.pid = atoi(optarg);
            break;
        case 'c':
            options.connections = atoi(optarg);
            break;
        case 'k':
            options.in_flight = atoi(optarg);
            break;
        case 's':
            options.size = atoi(optarg);
            break;
        case 'b':
            options.binary = true;
            break;
        case 'w':
            options.warmup = atof(optarg);
            break;
        case 't':
            options.seconds = atof(optarg);
            break;
        case 'x':
            options.text = index_of(optarg, text_names, 3);
            break;
        case 'z':
            options.compression = index_of(optarg, compression_names, 3);
            break;
        default:
            usage();
        }
    }
    if (optind + 1 != argc)
        usage();
    options.mode = index_of(argv[optind], mode_names, 4);
    if (options.port < 1 || options.connections < 1 || options.in_flight < 1 ||
        options.size < 1 || options.size > 16 * 1024 * 1024 || options.seconds <= 0)
        usage();
}

static void raise_descriptor_limit(int wanted)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < (rlim_t)wanted)
        fail("%d descriptors are needed, the limit is %llu", wanted, (unsigned long long)limit.rlim_cur);
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    raise_descriptor_limit(options.connections + 64);
    signal(SIGALRM, on_alarm);
    alarm(GRACE_SECONDS + options.warmup + options.seconds);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    read_buffer = must(malloc(READ_SIZE));
    make_rings();

    switch (options.mode) {
    case ECHO:
        open_connections(options.connections);
        for (int i = 0; i < conn_count; i++) {
            conns[i].owed = options.in_flight;
            send_owed(&conns[i]);
        }
        measure();
        break;
    case FANOUT:
        open_connections(options.connections + 1);
        conns[conn_count - 1].owed = options.in_flight;
        send_owed(&conns[conn_count - 1]);
        measure();
        break;
    case HANDSHAKE:
        conn_count = options.connections;
        conns = must(calloc(conn_count, sizeof *conns));
        for (int i = 0; i < conn_count; i++)
            open_connection(&conns[i]);
        measure();
        break;
    case IDLE:
        hold_idle();
        break;
    }
    return 0;
}
