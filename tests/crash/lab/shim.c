/* A library that is loaded before libc and stands between a process and its files.
 *
 * Below one watched directory it counts every operation (Python's and SQLite's alike) and, at the
 * one it was told, kills the process, stops it until it is told to go on, fails the call or writes half. It can also write
 * down all that succeeded, with the bytes, so that the states a power cut may leave can be made
 * from it. Inactive, it only passes calls on.
 *
 * lab/shim.py compiles it and speaks to it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NOTHING, KILL, FAIL, SHORT, STOP };
/* What needs space is a part of what changes something. */
enum { MUTATING = 1, READING = 2, LOCKING = 4, GROWING = 8 };
enum { GO_ON, REFUSE, HALVE };

#define MOST_FILES 4096

static struct {
    char root[4096];
    size_t root_length;
    int action, code, classes, trace;
    long at;
    bool persistent, no_exchange;
} plan = {.trace = -1};
static atomic_bool active;
static atomic_long counted, struck;
static bool watched[MOST_FILES];
static pthread_mutex_t tracing = PTHREAD_MUTEX_INITIALIZER, stopping = PTHREAD_MUTEX_INITIALIZER;

#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* --- what lab/shim.py calls ------------------------------------------------------------ */

void lab_begin(const char *root, int action, long at, int code, int persistent, int classes,
               int trace, int no_exchange)
{
    atomic_store(&active, false);
    snprintf(plan.root, sizeof plan.root, "%s", root);
    plan.root_length = strlen(plan.root);
    plan.action = action;
    plan.at = at;
    plan.code = code;
    plan.persistent = persistent;
    plan.classes = classes;
    plan.trace = trace;
    plan.no_exchange = no_exchange;
    memset(watched, 0, sizeof watched);
    atomic_store(&counted, 0);
    atomic_store(&struck, 0);
    atomic_store(&active, true);
}

long lab_end(void)
{
    atomic_store(&active, false);
    return atomic_load(&counted);
}

long lab_struck(void) { return atomic_load(&struck); }

long lab_counted(void) { return atomic_load(&counted); }

/* --- counting and striking ------------------------------------------------------------- */

static bool below(const char *path)
{
    return path && !strncmp(path, plan.root, plan.root_length) &&
           (path[plan.root_length] == '/' || path[plan.root_length] == 0);
}

static bool is_watched(int file) { return file >= 0 && file < MOST_FILES && watched[file]; }

static bool sees(int folder, const char *path)
{
    if (!atomic_load(&active) || !path) return false;
    return path[0] == '/' ? below(path) : is_watched(folder);
}

static bool sees_file(int file) { return atomic_load(&active) && is_watched(file); }

static void watch(int file, bool on)
{
    if (file >= 0 && file < MOST_FILES) watched[file] = on;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts one operation and tells what becomes of it. Short writes are for writes alone. */
static int meet(int class, bool is_write)
{
    if (!(class & plan.classes)) return GO_ON;
    long number = atomic_fetch_add(&counted, 1) + 1;
    if (plan.action == NOTHING || number < plan.at || (number > plan.at && !plan.persistent))
        return GO_ON;
    if (plan.action == SHORT && !is_write) return GO_ON;
    atomic_fetch_add(&struck, 1);
    switch (plan.action) {
    case KILL: die(); break;
    case STOP: /* with all its threads: what happens next is decided outside */
        pthread_mutex_lock(&stopping); /* one at a time, that none is passed over */
        raise(SIGSTOP); /* to this thread, which then does not run a step further */
        pthread_mutex_unlock(&stopping);
        return GO_ON;
    case FAIL: errno = plan.code; return REFUSE;
    case SHORT: return HALVE;
    }
    return GO_ON;
}

/* --- the trace: one line for each success, numbers and hexadecimal bytes ----------------- */

static unsigned long inode_of(int file)
{
    struct stat found;
    return fstat(file, &found) ? 0 : (unsigned long)found.st_ino;
}

static unsigned long inode_at(int folder, const char *path)
{
    struct stat found;
    return fstatat(folder, path, &found, AT_SYMLINK_NOFOLLOW) ? 0 : (unsigned long)found.st_ino;
}

static void put(const char *text, size_t length)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    while (length) {
        ssize_t done = real(plan.trace, text, length);
        if (done <= 0) _exit(98);
        text += done;
        length -= done;
    }
}

static const char *full(int folder, const char *path, char *buffer)
{
    char link[64];
    if (path[0] == '/') return path;
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, buffer, 4096);
    snprintf(buffer + (length > 0 ? length : 0), 4096, "/%s", path);
    return buffer;
}

static void note(const char *name, unsigned long inode, long number, const char *one,
                 const char *other)
{
    char line[12500];
    int length = snprintf(line, sizeof line, "%ld\t%s\t%lu\t%ld\t%s\t%s\n", atomic_load(&counted),
                          name, inode, number, one ? one : "", other ? other : "");
    put(line, length);
}

static void note_bytes(unsigned long inode, long offset, const unsigned char *bytes, size_t length)
{
    static const char digits[] = "0123456789abcdef";
    char line[4096];
    size_t used = snprintf(line, sizeof line, "%ld\twrite\t%lu\t%ld\t", atomic_load(&counted),
                           inode, offset);
    for (size_t i = 0; i < length; i++) {
        if (used + 4 > sizeof line) {
            put(line, used);
            used = 0;
        }
        line[used++] = digits[bytes[i] >> 4];
        line[used++] = digits[bytes[i] & 15];
    }
    line[used++] = '\t';
    line[used++] = '\n';
    put(line, used);
}

static bool traces(void) { return plan.trace >= 0; }

static void enter(void)
{
    if (traces()) pthread_mutex_lock(&tracing);
}

static void leave(void)
{
    int kept = errno;
    if (traces()) pthread_mutex_unlock(&tracing);
    errno = kept;
}

/* What lab/power.py needs to know: the loop has been told that its operation is done. */
void lab_mark(const char *name)
{
    if (!atomic_load(&active) || !traces()) return;
    enter();
    note("mark", 0, 0, name, NULL);
    leave();
}

/* --- opening and closing ----------------------------------------------------------------- */

static int open_any(int folder, const char *path, int flags, mode_t mode)
{
    REAL(int, "openat", int, const char *, int, ...);
    if (!sees(folder, path)) return real(folder, path, flags, mode);
    bool creates = flags & O_CREAT;
    /* Only one that makes or empties a file changes anything. */
    bool new = creates && inode_at(folder, path) == 0;
    bool empties = (flags & O_TRUNC) && !new;
    if (meet(new ? MUTATING | GROWING : empties ? MUTATING : READING, false) == REFUSE) return -1;
    enter();
    int file = real(folder, path, flags, mode);
    if (file >= 0) watch(file, true);
    if (file >= 0 && traces()) {
        char buffer[8192];
        if (new) note("create", inode_of(file), 0, full(folder, path, buffer), NULL);
        if (empties) note("truncate", inode_of(file), 0, NULL, NULL);
    }
    leave();
    return file;
}

#define MODE_OF(flags)                                     \
    mode_t mode = 0;                                       \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {               \
        va_list rest;                                      \
        va_start(rest, flags);                             \
        mode = va_arg(rest, mode_t);                       \
        va_end(rest);                                      \
    }

int open(const char *path, int flags, ...) { MODE_OF(flags) return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return open_any(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE_OF(flags) return open_any(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE_OF(flags) return open_any(folder, path, flags, mode); }

int close(int file)
{
    REAL(int, "close", int);
    watch(file, false);
    return real(file);
}

DIR *opendir(const char *path)
{
    REAL(DIR *, "opendir", const char *);
    if (sees(AT_FDCWD, path) && meet(READING, false) == REFUSE) return NULL;
    return real(path);
}

DIR *fdopendir(int file)
{
    REAL(DIR *, "fdopendir", int);
    if (sees_file(file) && meet(READING, false) == REFUSE) return NULL;
    return real(file);
}

int closedir(DIR *listing)
{
    REAL(int, "closedir", DIR *);
    watch(dirfd(listing), false); /* libc closes it without asking `close` above */
    return real(listing);
}

static int fcntl_any(int file, int command, void *argument)
{
    REAL(int, "fcntl64", int, int, ...);
    bool locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK;
    if (locks && sees_file(file) && meet(LOCKING, false) == REFUSE) return -1;
    int result = real(file, command, argument);
    if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && result >= 0)
        watch(result, is_watched(file));
    return result;
}

#define ARGUMENT_OF(command)                               \
    va_list rest;                                          \
    va_start(rest, command);                               \
    void *argument = va_arg(rest, void *);                 \
    va_end(rest);

int fcntl(int file, int command, ...) { ARGUMENT_OF(command) return fcntl_any(file, command, argument); }
int fcntl64(int file, int command, ...) { ARGUMENT_OF(command) return fcntl_any(file, command, argument); }

int flock(int file, int operation)
{
    REAL(int, "flock", int, int);
    if (sees_file(file) && meet(LOCKING, false) == REFUSE) return -1;
    return real(file, operation);
}

/* --- contents ---------------------------------------------------------------------------- */

ssize_t read(int file, void *bytes, size_t length)
{
    REAL(ssize_t, "read", int, void *, size_t);
    if (sees_file(file) && meet(READING, false) == REFUSE) return -1;
    return real(file, bytes, length);
}

ssize_t pread64(int file, void *bytes, size_t length, off64_t offset)
{
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
    if (sees_file(file) && meet(READING, false) == REFUSE) return -1;
    return real(file, bytes, length, offset);
}

ssize_t pread(int file, void *bytes, size_t length, off_t offset)
{
    return pread64(file, bytes, length, offset);
}

ssize_t write(int file, const void *bytes, size_t length)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!sees_file(file)) return real(file, bytes, length);
    int way = meet(MUTATING | GROWING, true);
    if (way == REFUSE) return -1;
    if (way == HALVE && length > 1) length /= 2;
    enter();
    long offset = 0;
    if (traces()) {
        struct stat found = {0};
        fstat(file, &found);
        offset = fcntl(file, F_GETFL) & O_APPEND ? found.st_size : lseek(file, 0, SEEK_CUR);
    }
    ssize_t done = real(file, bytes, length);
    if (done > 0 && traces()) note_bytes(inode_of(file), offset, bytes, done);
    leave();
    return done;
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t offset)
{
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (!sees_file(file)) return real(file, bytes, length, offset);
    int way = meet(MUTATING | GROWING, true);
    if (way == REFUSE) return -1;
    if (way == HALVE && length > 1) length /= 2;
    enter();
    ssize_t done = real(file, bytes, length, offset);
    if (done > 0 && traces()) note_bytes(inode_of(file), offset, bytes, done);
    leave();
    return done;
}

ssize_t pwrite(int file, const void *bytes, size_t length, off_t offset)
{
    return pwrite64(file, bytes, length, offset);
}

int ftruncate64(int file, off64_t length)
{
    REAL(int, "ftruncate64", int, off64_t);
    if (!sees_file(file)) return real(file, length);
    if (meet(MUTATING, false) == REFUSE) return -1;
    enter();
    int result = real(file, length);
    if (!result && traces()) note("truncate", inode_of(file), length, NULL, NULL);
    leave();
    return result;
}

int ftruncate(int file, off_t length) { return ftruncate64(file, length); }

#define FLUSHES(name)                                                    \
    int name(int file)                                                   \
    {                                                                    \
        REAL(int, #name, int);                                           \
        if (!sees_file(file)) return real(file);                         \
        if (meet(MUTATING, false) == REFUSE) return -1;                  \
        enter();                                                         \
        int result = real(file);                                         \
        if (!result && traces()) note("fsync", inode_of(file), 0, NULL, NULL); \
        leave();                                                         \
        return result;                                                   \
    }

FLUSHES(fsync)
FLUSHES(fdatasync)

/* --- names ------------------------------------------------------------------------------- */

int mkdirat(int folder, const char *path, mode_t mode)
{
    REAL(int, "mkdirat", int, const char *, mode_t);
    if (!sees(folder, path)) return real(folder, path, mode);
    if (meet(MUTATING | GROWING, false) == REFUSE) return -1;
    enter();
    int result = real(folder, path, mode);
    char buffer[8192];
    if (!result && traces())
        note("mkdir", inode_at(folder, path), 0, full(folder, path, buffer), NULL);
    leave();
    return result;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int mknodat(int folder, const char *path, mode_t mode, dev_t device)
{
    REAL(int, "mknodat", int, const char *, mode_t, dev_t);
    if (!sees(folder, path)) return real(folder, path, mode, device);
    if (meet(MUTATING | GROWING, false) == REFUSE) return -1;
    enter();
    int result = real(folder, path, mode, device);
    char buffer[8192];
    if (!result && traces())
        note("create", inode_at(folder, path), 0, full(folder, path, buffer), NULL);
    leave();
    return result;
}

int mknod(const char *path, mode_t mode, dev_t device)
{
    return mknodat(AT_FDCWD, path, mode, device);
}

int unlinkat(int folder, const char *path, int flags)
{
    REAL(int, "unlinkat", int, const char *, int);
    if (!sees(folder, path)) return real(folder, path, flags);
    if (meet(MUTATING, false) == REFUSE) return -1;
    enter();
    int result = real(folder, path, flags);
    char buffer[8192];
    if (!result && traces()) note("unlink", 0, 0, full(folder, path, buffer), NULL);
    leave();
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int linkat(int from, const char *one, int to, const char *other, int flags)
{
    REAL(int, "linkat", int, const char *, int, const char *, int);
    if (!sees(from, one) && !sees(to, other)) return real(from, one, to, other, flags);
    if (meet(MUTATING | GROWING, false) == REFUSE) return -1;
    enter();
    int result = real(from, one, to, other, flags);
    char buffers[2][8192];
    if (!result && traces())
        note("link", 0, 0, full(from, one, buffers[0]), full(to, other, buffers[1]));
    leave();
    return result;
}

int link(const char *one, const char *other)
{
    return linkat(AT_FDCWD, one, AT_FDCWD, other, 0);
}

static int rename_any(int from, const char *one, int to, const char *other, unsigned int flags)
{
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned int);
    if (!sees(from, one) && !sees(to, other)) return real(from, one, to, other, flags);
    if (flags && plan.no_exchange) { /* as NFS and FUSE answer */
        errno = EINVAL;
        return -1;
    }
    if (meet(MUTATING, false) == REFUSE) return -1;
    enter();
    int result = real(from, one, to, other, flags);
    char buffers[2][8192];
    if (!result && traces())
        note(flags & 2 ? "exchange" : "rename", 0, 0, full(from, one, buffers[0]),
             full(to, other, buffers[1]));
    leave();
    return result;
}

int renameat2(int from, const char *one, int to, const char *other, unsigned int flags)
{
    return rename_any(from, one, to, other, flags);
}

int renameat(int from, const char *one, int to, const char *other)
{
    return rename_any(from, one, to, other, 0);
}

int rename(const char *one, const char *other)
{
    return rename_any(AT_FDCWD, one, AT_FDCWD, other, 0);
}

int fchmod(int file, mode_t mode)
{
    REAL(int, "fchmod", int, mode_t);
    if (sees_file(file) && meet(MUTATING, false) == REFUSE) return -1;
    return real(file, mode);
}

/* --- looking: failed, never changed ------------------------------------------------------ */

#define LOOKS(name, kind)                                                            \
    int name(const char *path, struct kind *found)                                   \
    {                                                                                \
        REAL(int, #name, const char *, struct kind *);                               \
        if (sees(AT_FDCWD, path) && meet(READING, false) == REFUSE) return -1;       \
        return real(path, found);                                                    \
    }

LOOKS(stat, stat)
LOOKS(stat64, stat64)
LOOKS(lstat, stat)
LOOKS(lstat64, stat64)
