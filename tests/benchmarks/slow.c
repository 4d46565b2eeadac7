/* A library that is loaded before libc and makes a file system slow: each call that concerns a
 * name below CKPTDB_SLOW, or a file opened there, sleeps first for CKPTDB_SLOW_MICROSECONDS.
 *
 * The sleep is within the call, so it is as long as the call would be for whoever waits for it, and
 * the interpreter's lock is held during it exactly where Python holds it during the call. Listing a
 * directory costs one sleep when it is opened, for its entries come in large pieces. SQLite and the
 * library's own lock files are slow too when they lie there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define MOST_FILES 65536

static const char *root;
static size_t root_length;
static long microseconds;
static bool watched[MOST_FILES];
static atomic_long counted;

#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

__attribute__((constructor)) static void begin(void)
{
    const char *told = getenv("CKPTDB_SLOW_MICROSECONDS");
    microseconds = told ? atol(told) : 0;
    root = getenv("CKPTDB_SLOW");
    root_length = root ? strlen(root) : 0;
}

long slow_calls(void) { return atomic_load(&counted); }

static bool below(int folder, const char *path)
{
    if (!root || !path) return false;
    if (path[0] != '/') return folder >= 0 && folder < MOST_FILES && watched[folder];
    return !strncmp(path, root, root_length) &&
           (path[root_length] == '/' || path[root_length] == 0);
}

static bool is_watched(int file) { return file >= 0 && file < MOST_FILES && watched[file]; }

static void crawl(bool slow)
{
    if (!slow) return;
    atomic_fetch_add(&counted, 1);
    struct timespec pause = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&pause, NULL);
}

static int opened(int file, bool slow)
{
    if (file >= 0 && file < MOST_FILES) watched[file] = slow;
    return file;
}

/* --- opening and closing ----------------------------------------------------------------- */

static int open_any(int folder, const char *path, int flags, mode_t mode)
{
    REAL(int, "openat", int, const char *, int, ...);
    bool slow = below(folder, path);
    crawl(slow);
    return opened(real(folder, path, flags, mode), slow);
}

#define OPENS(name)                                             \
    int name(const char *path, int flags, ...)                  \
    {                                                           \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                           \
        return open_any(AT_FDCWD, path, flags, mode);           \
    }

#define OPENS_AT(name)                                          \
    int name(int folder, const char *path, int flags, ...)      \
    {                                                           \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                           \
        return open_any(folder, path, flags, mode);             \
    }

OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

DIR *opendir(const char *path)
{
    REAL(DIR *, "opendir", const char *);
    crawl(below(AT_FDCWD, path));
    return real(path);
}

DIR *fdopendir(int file)
{
    REAL(DIR *, "fdopendir", int);
    crawl(is_watched(file));
    return real(file);
}

int close(int file)
{
    REAL(int, "close", int);
    bool slow = is_watched(file);
    crawl(slow);
    if (slow) watched[file] = false;
    return real(file);
}

/* --- what takes a name -------------------------------------------------------------------- */

#define NAMES(name, arguments, types, values, folder, path)     \
    int name arguments                                          \
    {                                                           \
        REAL(int, #name, types);                                \
        crawl(below(folder, path));                             \
        return real values;                                     \
    }
#define T(...) __VA_ARGS__

#define LOOKS(name, kind) \
    NAMES(name, (const char *path, struct kind *found), T(const char *, struct kind *), \
          (path, found), AT_FDCWD, path)
LOOKS(stat, stat)
LOOKS(stat64, stat64)
LOOKS(lstat, stat)
LOOKS(lstat64, stat64)
NAMES(fstatat, (int folder, const char *path, struct stat *found, int flags),
      T(int, const char *, struct stat *, int), (folder, path, found, flags), folder, path)
NAMES(fstatat64, (int folder, const char *path, struct stat64 *found, int flags),
      T(int, const char *, struct stat64 *, int), (folder, path, found, flags), folder, path)
NAMES(access, (const char *path, int mode), T(const char *, int), (path, mode), AT_FDCWD, path)
NAMES(faccessat, (int folder, const char *path, int mode, int flags),
      T(int, const char *, int, int), (folder, path, mode, flags), folder, path)
NAMES(mkdir, (const char *path, mode_t mode), T(const char *, mode_t), (path, mode), AT_FDCWD, path)
NAMES(rmdir, (const char *path), T(const char *), (path), AT_FDCWD, path)
NAMES(unlink, (const char *path), T(const char *), (path), AT_FDCWD, path)
NAMES(unlinkat, (int folder, const char *path, int flags), T(int, const char *, int),
      (folder, path, flags), folder, path)
NAMES(rename, (const char *from, const char *to), T(const char *, const char *), (from, to),
      AT_FDCWD, to)

/* --- what takes an open file -------------------------------------------------------------- */

#define FILES(type, name, arguments, types, values)             \
    type name arguments                                         \
    {                                                           \
        REAL(type, #name, types);                               \
        crawl(is_watched(file));                                \
        return real values;                                     \
    }

FILES(ssize_t, read, (int file, void *to, size_t length), T(int, void *, size_t),
      (file, to, length))
FILES(ssize_t, pread64, (int file, void *to, size_t length, off64_t at),
      T(int, void *, size_t, off64_t), (file, to, length, at))
FILES(ssize_t, write, (int file, const void *from, size_t length), T(int, const void *, size_t),
      (file, from, length))
FILES(ssize_t, pwrite64, (int file, const void *from, size_t length, off64_t at),
      T(int, const void *, size_t, off64_t), (file, from, length, at))
FILES(int, fstat, (int file, struct stat *found), T(int, struct stat *), (file, found))
FILES(int, fstat64, (int file, struct stat64 *found), T(int, struct stat64 *), (file, found))
FILES(int, fsync, (int file), T(int), (file))
FILES(int, fdatasync, (int file), T(int), (file))
