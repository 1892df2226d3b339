/* Preloaded into a process: counts the calls that change files, and at one of them kills the
   process or lets the disk be full. `crash_arm` chooses; until then every call goes through. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls, writes;
static long kill_at, full_from;

void crash_arm(long kill_at_call, long full_from_write) {
  calls = writes = 0;
  kill_at = kill_at_call;
  full_from = full_from_write;
}
long crash_calls(void) { return calls; }
long crash_writes(void) { return writes; }

static void count(void) {
  if (atomic_fetch_add(&calls, 1) + 1 == kill_at) kill(getpid(), SIGKILL);
}

/* Standard streams are not on the disk. */
static int is_full(int descriptor) {
  struct stat found;
  if (descriptor <= 2 || fstat(descriptor, &found) || !S_ISREG(found.st_mode)) return 0;
  count();
  long number = atomic_fetch_add(&writes, 1) + 1;
  if (full_from == 0 || number < full_from) return 0;
  errno = ENOSPC;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void* data, size_t size) {
  return is_full(descriptor) ? -1 : REAL(write)(descriptor, data, size);
}
ssize_t writev(int descriptor, const struct iovec* parts, int count_of_parts) {
  return is_full(descriptor) ? -1 : REAL(writev)(descriptor, parts, count_of_parts);
}
ssize_t pwrite(int descriptor, const void* data, size_t size, off_t at) {
  return is_full(descriptor) ? -1 : REAL(pwrite)(descriptor, data, size, at);
}
ssize_t pwrite64(int descriptor, const void* data, size_t size, off64_t at) {
  return is_full(descriptor) ? -1 : REAL(pwrite64)(descriptor, data, size, at);
}

#define COUNTED(result, name, parameters, arguments) \
  result name parameters {                           \
    count();                                         \
    return REAL(name) arguments;                     \
  }

COUNTED(int, rename, (const char* a, const char* b), (a, b))
COUNTED(int, renameat, (int x, const char* a, int y, const char* b), (x, a, y, b))
COUNTED(int, unlink, (const char* a), (a))
COUNTED(int, unlinkat, (int x, const char* a, int flags), (x, a, flags))
COUNTED(int, rmdir, (const char* a), (a))
COUNTED(int, mkdir, (const char* a, mode_t mode), (a, mode))
COUNTED(int, fsync, (int descriptor), (descriptor))
COUNTED(int, ftruncate, (int descriptor, off_t size), (descriptor, size))
COUNTED(int, ftruncate64, (int descriptor, off64_t size), (descriptor, size))

#define OPENS(name)                                                         \
  int name(const char* path, int flags, ...) {                              \
    va_list rest;                                                           \
    va_start(rest, flags);                                                  \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                           \
    if (flags & O_CREAT) count();                                           \
    return REAL(name)(path, flags, mode);                                   \
  }

OPENS(open)
OPENS(open64)
