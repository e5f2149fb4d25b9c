/* Logs what processes do to the files in one folder, for disk.py to play again up to any moment.

   Preloaded into a process (LD_PRELOAD), it stands before the calls that change a file or make it durable: those of them
   that SQLite uses on Linux, and `write`, with which the tests' processes keep their own logs, so that what they were
   told stands in one order with what was on the disk when they were told. Reads and locks change nothing and pass by.
   Should some SQLite use another call, the log, played to its end, no longer gives the files that are there, and a test
   says so.

   DISK_FOLDER names the folder, DISK_LOG the log. A record is written once its call has returned, by one append, so that
   it is whole and in its place whatever other threads and processes write: a head as below, then `length` bytes. Files
   go by process and descriptor, as they do for the kernel; only a record of opening or unlinking one tells its name.

   System calls are made directly: no other library's version is looked up, so nothing can be missing or not yet there
   when another library's constructor opens a file. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "files of 64 bits: as it is on every 64-bit Linux");

enum kind { OPEN = 'o', WRITE = 'w', TRUNCATE = 't', SYNC = 's', UNLINK = 'u' };

struct head {
    uint32_t kind, pid;
    int32_t fd;
    uint32_t length;
    int64_t offset;
};

enum { MOST_FILES = 65536 };

static const char *folder;
static size_t folder_length;
static int log_fd = -1;
static unsigned char watched[MOST_FILES];

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("DISK_LOG");
    folder = getenv("DISK_FOLDER");
    if (folder == NULL || path == NULL) abort();
    folder_length = strlen(folder);
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) abort();
}

static void tell(enum kind kind, int fd, int64_t offset, const void *data, size_t length) {
    int saved = errno;
    struct head head = {kind, (uint32_t)getpid(), fd, (uint32_t)length, offset};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)data, length}};
    /* A log with a hole would prove nothing. */
    if (syscall(SYS_writev, log_fd, parts, 2) != (long)(sizeof head + length)) abort();
    errno = saved;
}

/* The name of a file in the folder, "" for the folder itself, NULL for any other. */
static const char *name_in_folder(const char *path) {
    if (log_fd < 0 || strncmp(path, folder, folder_length) != 0) return NULL;
    path += folder_length;
    if (*path == '\0') return path;
    return *path == '/' && strchr(path + 1, '/') == NULL ? path + 1 : NULL;
}

static int is_watched(int fd) { return fd >= 0 && fd < MOST_FILES && watched[fd]; }

static int opened(int fd, const char *path) {
    const char *name = fd < 0 ? NULL : name_in_folder(path);
    if (name == NULL) return fd;
    if (fd >= MOST_FILES) abort();
    watched[fd] = 1;
    tell(OPEN, fd, 0, name, strlen(name));
    return fd;
}

#define OPENS(function, at, arguments)                                          \
    int function arguments {                                                    \
        mode_t mode = 0;                                                        \
        if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {              \
            va_list rest;                                                       \
            va_start(rest, flags);                                              \
            mode = va_arg(rest, mode_t);                                        \
            va_end(rest);                                                       \
        }                                                                       \
        return opened((int)syscall(SYS_openat, at, path, flags, mode), path);   \
    }

OPENS(open, AT_FDCWD, (const char *path, int flags, ...))
OPENS(open64, AT_FDCWD, (const char *path, int flags, ...))
OPENS(openat, at, (int at, const char *path, int flags, ...))
OPENS(openat64, at, (int at, const char *path, int flags, ...))

int close(int fd) {
    if (is_watched(fd)) watched[fd] = 0; /* before another thread can be given this number */
    return (int)syscall(SYS_close, fd);
}

ssize_t write(int fd, const void *data, size_t length) {
    int64_t offset = is_watched(fd) ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t written = syscall(SYS_write, fd, data, length);
    if (written > 0 && is_watched(fd)) tell(WRITE, fd, offset, data, (size_t)written);
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    ssize_t written = syscall(SYS_pwrite64, fd, data, length, offset);
    if (written > 0 && is_watched(fd)) tell(WRITE, fd, offset, data, (size_t)written);
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return pwrite(fd, data, length, offset); }

int ftruncate(int fd, off_t length) {
    int failed = (int)syscall(SYS_ftruncate, fd, length);
    if (!failed && is_watched(fd)) tell(TRUNCATE, fd, length, NULL, 0);
    return failed;
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

static int synced(int failed, int fd) {
    if (!failed && is_watched(fd)) tell(SYNC, fd, 0, NULL, 0);
    return failed;
}

int fsync(int fd) { return synced((int)syscall(SYS_fsync, fd), fd); }

int fdatasync(int fd) { return synced((int)syscall(SYS_fdatasync, fd), fd); }

static int unlinked(int failed, const char *path) {
    const char *name = failed ? NULL : name_in_folder(path);
    if (name != NULL) tell(UNLINK, -1, 0, name, strlen(name));
    return failed;
}

int unlink(const char *path) { return unlinked((int)syscall(SYS_unlinkat, AT_FDCWD, path, 0), path); }

int unlinkat(int at, const char *path, int flags) { return unlinked((int)syscall(SYS_unlinkat, at, path, flags), path); }
