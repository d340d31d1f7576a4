/* Only in the sanitized program: TBB opens a library of its own with RTLD_DEEPBIND, which the sanitizers refuse. */
#define _GNU_SOURCE
#include <dlfcn.h>

void *__interceptor_dlopen(const char *path, int flags);
void *dlopen(const char *path, int flags);

void *dlopen(const char *path, int flags) { return __interceptor_dlopen(path, flags & ~RTLD_DEEPBIND); }
