/* A disk that fails, below Python: preloaded, it stands between a process and the C library's calls on files whose
 * path ends in .seg. FAULTY_DISK says how:
 *
 *   enospc:N   after N bytes in all, writes fail with ENOSPC; the one that crosses N is short, as on a real disk
 *   eio:N      the same with EIO
 *   dead:N     after N bytes nothing works any more: not ftruncate and fsync either
 *   short      each write takes a random part of what it is given
 *   eintr      two of three writes are interrupted
 *   fsync      fsync fails with EIO
 *   slow:N     N bytes a second; to make a file takes half a second, and one write in twenty two more
 *
 * Where FAULTY_FOLDER is set, it is all files below that folder instead.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static size_t written;
static unsigned calls;

static int is(const char *mode) {
    const char *set = getenv("FAULTY_DISK");
    return set != NULL && strncmp(set, mode, strlen(mode)) == 0;
}

static size_t most(void) {
    const char *colon = strchr(getenv("FAULTY_DISK"), ':');
    return colon == NULL ? 0 : strtoul(colon + 1, NULL, 10);
}

static int below(const char *path, size_t length) {
    const char *folder = getenv("FAULTY_FOLDER");
    size_t size = folder == NULL ? 0 : strlen(folder);
    return size > 0 && length > size && memcmp(path, folder, size) == 0;
}

static int concerns(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    if (getenv("FAULTY_FOLDER") != NULL && length > 0) return below(path, length);
    return getenv("FAULTY_DISK") != NULL && length > 4 && memcmp(path + length - 4, ".seg", 4) == 0;
}

static void slowly(size_t size) {
    if (!is("slow")) return;
    usleep(size * 1000000.0 / most());
    if (__sync_add_and_fetch(&calls, 1) % 20 == 0) sleep(2);
}

static int limited(void) { return is("enospc") || is("eio") || is("dead"); }

/* How many of `size` bytes may be written; -1 with errno if none. */
static ssize_t allowed(size_t size) {
    calls++;
    if (is("eintr") && calls % 3 != 0) return errno = EINTR, -1;
    if (is("short") && size > 1) return 1 + rand() % size;
    if (!limited()) return size;
    if (written >= most()) return errno = is("enospc") ? ENOSPC : EIO, -1;
    return size < most() - written ? size : most() - written;
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (!concerns(fd) || size == 0) return real(fd, data, size);
    slowly(size);
    ssize_t count = is("slow") ? (ssize_t)size : allowed(size);
    ssize_t done = count < 0 ? -1 : real(fd, data, count);
    if (done > 0) written += done;
    return done;
}

ssize_t writev(int fd, const struct iovec *pieces, int count) {
    ssize_t (*real)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    if (!concerns(fd)) return real(fd, pieces, count);
    size_t size = 0, at = 0;
    for (int i = 0; i < count; i++) size += pieces[i].iov_len;
    slowly(size);
    if (is("slow")) return real(fd, pieces, count);
    ssize_t left = size == 0 ? 0 : allowed(size);
    if (left < 0) return -1;
    struct iovec taken[count];
    int used = 0;
    for (; used < count && at < (size_t)left; used++) {
        taken[used] = pieces[used];
        if (taken[used].iov_len > left - at) taken[used].iov_len = left - at;
        at += taken[used].iov_len;
    }
    ssize_t done = real(fd, taken, used);
    if (done > 0) written += done;
    return done;
}

static int opened(const char *name, const char *path, int flags, va_list more) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    if (flags & O_CREAT && is("slow") && below(path, strlen(path))) usleep(500000);
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int fd = opened("open", path, flags, more);
    va_end(more);
    return fd;
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int fd = opened("open64", path, flags, more);
    va_end(more);
    return fd;
}

static int dead(int fd) { return concerns(fd) && is("dead") && written >= most(); }

int ftruncate(int fd, off_t size) {
    int (*real)(int, off_t) = dlsym(RTLD_NEXT, "ftruncate");
    return dead(fd) ? (errno = EIO, -1) : real(fd, size);
}

int ftruncate64(int fd, off64_t size) {
    int (*real)(int, off64_t) = dlsym(RTLD_NEXT, "ftruncate64");
    return dead(fd) ? (errno = EIO, -1) : real(fd, size);
}

int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return dead(fd) || (concerns(fd) && is("fsync")) ? (errno = EIO, -1) : real(fd);
}
