/* A disk that fails on purpose, under a process that is started with this in LD_PRELOAD.
 *
 * FAULT_DIR    only files beneath this directory
 * FAULT_AT     the n-th write or fsync fails with EIO, once
 * FAULT_FULL   while this file exists, every write fails with ENOSPC
 * FAULT_COUNT  a file that holds the number of writes and fsyncs so far
 * FAULT_SHADOW a directory that keeps what is durable: the bytes of each file at its last fsync (files/INODE), and
 *              the entries of each directory at its own (dirs/INODE, lines of "f|d INODE NAME")
 *
 * What is not behind libc's names (the raw system calls of some libraries) is not seen.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long calls;

static int is_ours(int fd) {
    const char *dir = getenv("FAULT_DIR");
    char link[64], path[PATH_MAX];
    if (!dir) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return 0;
    path[len] = 0;
    /* Shared memory of SQLite is no disk; logs and the spool's hint are not what was promised. */
    return strncmp(path, dir, strlen(dir)) == 0 && !strstr(path, "-shm") && !strstr(path, "/logs/") && !strstr(path, "/lock") &&
           !strstr(path, "/last-commit");
}

/* The error that this call shall have, or 0. */
static int fault(int fd, int writes) {
    if (!is_ours(fd)) return 0;
    long n = atomic_fetch_add(&calls, 1) + 1;
    const char *count = getenv("FAULT_COUNT"), *at = getenv("FAULT_AT"), *full = getenv("FAULT_FULL");
    if (count) {
        FILE *file = fopen(count, "w");
        if (file) { fprintf(file, "%ld\n", n); fclose(file); }
    }
    if (writes && full && access(full, F_OK) == 0) return ENOSPC;
    return at && atol(at) == n ? EIO : 0;
}

/* What this fsync makes durable, under a temporary name first: power may go at any time. */
static void copy(int fd) {
    const char *shadow = getenv("FAULT_SHADOW");
    struct stat of;
    char from[64], to[PATH_MAX], temporary[PATH_MAX + 8];
    if (!shadow || !is_ours(fd) || fstat(fd, &of) != 0) return;
    int is_dir = S_ISDIR(of.st_mode);
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    snprintf(to, sizeof to, "%s/%s/%lu", shadow, is_dir ? "dirs" : "files", (unsigned long)of.st_ino);
    snprintf(temporary, sizeof temporary, "%s.new", to);
    if (is_dir) {
        DIR *dir = opendir(from);
        FILE *out = fopen(temporary, "w");
        for (struct dirent *entry; dir && out && (entry = readdir(dir));)
            if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
                fprintf(out, "%c %lu %s\n", entry->d_type == DT_DIR ? 'd' : 'f', (unsigned long)entry->d_ino, entry->d_name);
        if (dir) closedir(dir);
        if (out) fclose(out);
    } else {
        int in = open(from, O_RDONLY | O_CLOEXEC), out = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        while (in >= 0 && out >= 0 && sendfile(out, in, NULL, 1 << 24) > 0) {}
        if (in >= 0) close(in);
        if (out >= 0) close(out);
    }
    rename(temporary, to);
}

/* One at a time: of two copies of a file the later one stays. */
static void keep(int fd) {
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&one);
    copy(fd);
    pthread_mutex_unlock(&one);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(fd, writes)                 \
    do {                                 \
        int error = fault(fd, writes);   \
        if (error) { errno = error; return -1; } \
    } while (0)

ssize_t write(int fd, const void *bytes, size_t len) {
    FAIL(fd, 1);
    return REAL(write)(fd, bytes, len);
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) {
    FAIL(fd, 1);
    return REAL(pwrite)(fd, bytes, len, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    FAIL(fd, 1);
    return REAL(pwrite64)(fd, bytes, len, at);
}

int fsync(int fd) {
    FAIL(fd, 0);
    keep(fd);
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    FAIL(fd, 0);
    keep(fd);
    return REAL(fdatasync)(fd);
}
