/* The floor: the same bytes over the same sockets with epoll and nothing else.
 *
 *   floor serve PORT REQUEST_BYTES ANSWER_BYTES
 *   floor load  PORT REQUEST_BYTES ANSWER_BYTES OUTSTANDING SECONDS
 *
 * The server counts bytes: every REQUEST_BYTES are answered by ANSWER_BYTES.
 * Neither side parses or unmasks anything.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char input[1 << 18], output[1 << 22];

static double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Writes all of it, waiting for room where there is none. */
static void write_all(int fd, size_t n)
{
    size_t at = 0;
    while (at < n) {
        ssize_t sent = send(fd, output + at, n - at, MSG_NOSIGNAL);
        if (sent > 0)
            at += (size_t)sent;
        else if (sent < 0 && errno != EAGAIN && errno != EINTR)
            die("send");
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct epoll_event event = {.events = EPOLLIN}, ready[4];
    int one = 1, loading, fd, epoll;
    size_t request, answer, in_size, out_size, carried = 0;
    if (argc < 5)
        return 2;
    loading = strcmp(argv[1], "load") == 0;
    request = (size_t)atol(argv[3]);
    answer = (size_t)atol(argv[4]);
    in_size = loading ? answer : request;
    out_size = loading ? request : answer;
    memset(output, 'x', sizeof output);
    address.sin_port = htons((unsigned short)atoi(argv[2]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (loading) {
        if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
            die("connect");
    } else {
        int listener = fd;
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0)
            die("bind");
    next:
        fd = accept(listener, NULL, NULL);
        if (fd < 0)
            die("accept");
        close(dup(fd));
        carried = 0;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        epoll = epoll_create1(0);
        event.data.fd = fd;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        for (;;) {
            ssize_t got;
            epoll_wait(epoll, ready, 4, -1);
            got = recv(fd, input, sizeof input, 0);
            if (got == 0 || (got < 0 && errno != EAGAIN)) {
                close(fd);
                close(epoll);
                goto next;
            }
            if (got > 0) {
                carried += (size_t)got;
                write_all(fd, carried / in_size * out_size);
                carried %= in_size;
            }
        }
    }
    {
        size_t outstanding = (size_t)atol(argv[5]);
        double stretch = atof(argv[6]), started = 0, cpu = 0, ends;
        long done = 0;
        int warm;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        epoll = epoll_create1(0);
        event.data.fd = fd;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        write_all(fd, outstanding * out_size);
        for (warm = 0; warm < 2; warm++) {
            done = 0;
            started = seconds(CLOCK_MONOTONIC);
            cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
            ends = started + (warm ? stretch : stretch / 4);
            while (seconds(CLOCK_MONOTONIC) < ends) {
                ssize_t got;
                epoll_wait(epoll, ready, 4, 1000);
                got = recv(fd, input, sizeof input, 0);
                if (got > 0) {
                    carried += (size_t)got;
                    done += (long)(carried / in_size);
                    write_all(fd, carried / in_size * out_size);
                    carried %= in_size;
                } else if (got == 0)
                    die("closed");
            }
        }
        printf("{\"requests\": %ld, \"seconds\": %f, \"cpu\": %f}\n", done, seconds(CLOCK_MONOTONIC) - started,
               seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    }
    return 0;
}
