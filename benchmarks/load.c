/*
 * The load generator: a WebSocket client for many connections, single-threaded on epoll, which also reads the server's
 * CPU time at both ends of the measured window.
 *
 * Message n of a connection is message n modulo `ring_messages`, and carries that number. So every stream is periodic:
 * what is to be sent lies ready, masked, in one ring, and what must come back lies beside it. Sending is a pointer into
 * the first, and checking every byte received, the order included, is a comparison with the second.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
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
};

/* The key and its answer of RFC 6455 section 1.3. */
static const char request[] = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
static const char accept_value[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

enum mode { ECHO, FANOUT, HANDSHAKE, IDLE };
static const char *const mode_names[] = {"echo", "fanout", "handshake", "idle"};

static struct {
    enum mode mode;
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
    uint32_t head_length;
    char *head;
};

static int epoll_fd;
static struct conn *conns;
static int conn_count, started, opened;
static uint8_t *read_buffer;
static uint64_t messages, deliveries, handshakes;

/* The outgoing ring is laid out twice, so that any run of up to a whole ring of messages is one piece. */
static uint32_t ring_messages;
static uint8_t *out_ring, *in_ring;
static size_t out_frame, in_frame;

/* fan-out: how many connections have received each message in flight */
static uint32_t *arrived;
static uint32_t oldest;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "load: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static void *must(void *memory)
{
    if (!memory)
        fail("out of memory");
    return memory;
}

static void on_alarm(int signal)
{
    static const char text[] = "load: not finished within its time\n";
    (void)signal;
    (void)!write(STDERR_FILENO, text, sizeof text - 1);
    _exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* The server's CPU time, of all its threads; user and system only in clock ticks. */
struct cpu {
    double total, user, system;
};

static struct cpu server_cpu(void)
{
    struct cpu cpu = {0};
    char path[320], text[1024];
    if (!options.pid)
        return cpu;
    snprintf(path, sizeof path, "/proc/%d/task", options.pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        fail("the server (process %d) is gone", options.pid);
    for (struct dirent *task; (task = readdir(tasks));) {
        unsigned long long nanoseconds;
        if (!isdigit((unsigned char)task->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", options.pid, task->d_name);
        FILE *file = fopen(path, "r");
        if (!file || fscanf(file, "%llu", &nanoseconds) != 1)
            fail("cannot read %s", path);
        fclose(file);
        cpu.total += nanoseconds * 1e-9;
    }
    closedir(tasks);

    snprintf(path, sizeof path, "/proc/%d/stat", options.pid);
    FILE *file = fopen(path, "r");
    if (!file || !fgets(text, sizeof text, file))
        fail("cannot read %s", path);
    fclose(file);
    /* The command's name, in parentheses, may hold spaces. */
    unsigned long long user, system;
    char *after_name = strrchr(text, ')');
    if (!after_name ||
        sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system) != 2)
        fail("cannot read %s", path);
    cpu.user = (double)user / sysconf(_SC_CLK_TCK);
    cpu.system = (double)system / sysconf(_SC_CLK_TCK);
    return cpu;
}

static long server_resident_kb(void)
{
    char path[64], line[256];
    long kb = -1;
    if (!options.pid)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/status", options.pid);
    FILE *file = fopen(path, "r");
    if (!file)
        fail("the server (process %d) is gone", options.pid);
    while (kb < 0 && fgets(line, sizeof line, file))
        sscanf(line, "VmRSS: %ld", &kb);
    fclose(file);
    if (kb < 0)
        fail("no VmRSS in %s", path);
    return kb;
}

static double own_cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static size_t write_header(uint8_t *at, uint8_t opcode, size_t length, uint8_t mask_bit)
{
    at[0] = 0x80 | opcode;
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

static void make_rings(void)
{
    size_t size = options.size;
    uint8_t opcode = options.binary ? 2 : 1;
    uint8_t header[16];
    in_frame = write_header(header, opcode, size, 0) + size;
    out_frame = in_frame + 4;
    ring_messages = RING_BYTES / out_frame;
    if (ring_messages > 256)
        ring_messages = 256;
    /* More than are in flight, so that a lost or repeated message shows. */
    if (ring_messages < 2u * options.in_flight + 1)
        ring_messages = 2 * options.in_flight + 1;
    in_ring = must(malloc(ring_messages * in_frame));
    out_ring = must(malloc(2 * ring_messages * out_frame));
    arrived = must(calloc(ring_messages, sizeof *arrived));

    srandom(1);
    for (uint32_t n = 0; n < ring_messages; n++) {
        uint8_t *in = in_ring + n * in_frame;
        uint8_t *payload = in + write_header(in, opcode, size, 0);
        char number[9];
        for (size_t i = 0; i < size; i++)
            payload[i] = options.binary ? random() : ' ' + random() % 95;
        snprintf(number, sizeof number, "%08x", n);
        size_t digits = size < 8 ? size : 8;
        memcpy(payload, number + 8 - digits, digits);

        uint8_t *out = out_ring + n * out_frame;
        uint8_t *key = out + write_header(out, opcode, size, 0x80);
        for (int i = 0; i < 4; i++)
            key[i] = random();
        for (size_t i = 0; i < size; i++)
            key[4 + i] = payload[i] ^ key[i & 3];
    }
    memcpy(out_ring + ring_messages * out_frame, out_ring, ring_messages * out_frame);
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
        size_t length = c->owed * out_frame - c->out_part;
        ssize_t sent = send(c->fd, out_ring + c->out_message * out_frame + c->out_part, length, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN)
                fail("lost a connection while sending: %s", strerror(errno));
            sent = 0;
        }
        size_t whole = (c->out_part + sent) / out_frame;
        c->out_part = (c->out_part + sent) % out_frame;
        c->out_message = (c->out_message + whole) % ring_messages;
        c->owed -= whole;
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

/* Checks what has arrived; returns how many messages it completes. */
static uint32_t receive(struct conn *c)
{
    ssize_t got = recv(c->fd, read_buffer, READ_SIZE, 0);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN)
            return 0;
        fail("lost connection %ld: %s", c - conns, got ? strerror(errno) : "closed by the server");
    }
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
    ssize_t sent = send(c->fd, request, sizeof request - 1, MSG_NOSIGNAL);
    if (sent == (ssize_t)sizeof request - 1) {
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
            else
                fail("lost connection %ld, or it sent something unasked", c - conns);
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
    uint64_t messages_before = messages, deliveries_before = deliveries;
    struct cpu before = server_cpu();
    double own_before = own_cpu();
    start = now();
    while (turn_loop(100) < start + options.seconds)
        ;
    double seconds = now() - start;
    struct cpu after = server_cpu();
    double own = own_cpu() - own_before;
    uint64_t message_count = messages - messages_before;
    uint64_t delivery_count = options.mode == HANDSHAKE ? message_count : deliveries - deliveries_before;
    if (!delivery_count)
        fail("nothing was delivered in the measured window");
    double cpu = after.total - before.total;
    printf("{\"mode\": \"%s\", \"messages\": %llu, \"deliveries\": %llu, \"seconds\": %.4f, "
           "\"per_second\": %.1f, \"cpu_us_per_message\": %.4f, \"cpu_us_per_delivery\": %.4f, "
           "\"server_cpu_seconds\": %.4f, \"server_user_seconds\": %.2f, \"server_system_seconds\": %.2f, "
           "\"server_busy\": %.3f, \"load_busy\": %.3f}\n",
           mode_names[options.mode], (unsigned long long)message_count, (unsigned long long)delivery_count, seconds,
           delivery_count / seconds, message_count ? cpu * 1e6 / message_count : 0, cpu * 1e6 / delivery_count, cpu,
           after.user - before.user, after.system - before.system, cpu / seconds, own / seconds);
}

static void hold_idle(void)
{
    int count = options.connections;
    /* The first connections make the server load code and grow pools, once. */
    open_connections(WARMING_CONNECTIONS);
    for (int i = 0; i < WARMING_CONNECTIONS; i++)
        close(conns[i].fd);
    free(conns);
    usleep(300 * 1000);
    long before = server_resident_kb();
    double start = now();
    open_connections(count);
    double seconds = now() - start;
    printf("ready\n");
    fflush(stdout);

    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    /* What epoll refuses, such as /dev/null, has no end to wait for. */
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
    long after = server_resident_kb();
    printf("{\"mode\": \"idle\", \"messages\": %d, \"deliveries\": 0, \"seconds\": %.4f, \"resident_before_kb\": %ld, "
           "\"resident_after_kb\": %ld, \"resident_kb_per_connection\": %.4f}\n",
           count, seconds, before, after, (double)(after - before) / count);
}

__attribute__((noreturn)) static void usage(void)
{
    fprintf(stderr,
            "usage: load echo|fanout|handshake|idle --port N [--pid SERVER] [--connections N] [--in-flight K]\n"
            "            [--size BYTES] [--binary] [--warmup SECONDS] [--seconds SECONDS]\n"
            "In fanout mode one more connection is the sender. In handshake mode --connections are tried at a time.\n"
            "In idle mode the connections are held, once \"ready\" is printed, until stdin ends.\n");
    exit(2);
}

static void read_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, 0, 'p'},    {"pid", 1, 0, 'i'},  {"connections", 1, 0, 'c'}, {"in-flight", 1, 0, 'k'},
        {"size", 1, 0, 's'},    {"binary", 0, 0, 'b'}, {"warmup", 1, 0, 'w'},    {"seconds", 1, 0, 't'},
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
        default:
            usage();
        }
    }
    unsigned mode = 0;
    while (optind < argc && mode < 4 && strcmp(argv[optind], mode_names[mode]))
        mode++;
    options.mode = mode;
    if (optind + 1 != argc || mode == 4 || options.port < 1 || options.connections < 1 || options.in_flight < 1 ||
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
