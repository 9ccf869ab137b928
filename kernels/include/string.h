/* Memory and strings (lib/string.c). The compiler may call the first four by itself. */
#pragma once
#include "types.h"

void *memcpy(void *dst, const void *src, size_t n);
void *memmove(void *dst, const void *src, size_t n);
void *memset(void *dst, int value, size_t n);
int memcmp(const void *a, const void *b, size_t n);
void *memchr(const void *p, int c, size_t n);

size_t strlen(const char *s);
size_t strnlen(const char *s, size_t max);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);
char *strchr(const char *s, int c);
char *strrchr(const char *s, int c);
char *strstr(const char *s, const char *what);
/* Copies at most size - 1 bytes and terminates; returns the length copied or -E2BIG if it was cut. */
ssize_t strscpy(char *dst, const char *src, size_t size);

/* Decimal, 0x hex or 0 octal, then an optional suffix K M G T P E; *end is behind what was read. */
u64 memparse(const char *s, const char **end);
/* The whole string, a newline at its end tolerated. 0, -EINVAL, -ERANGE. base 0: by prefix. */
int kstrtou64(const char *s, unsigned int base, u64 *out);
/* Judged by the first one or two characters, as Linux does. 0 or -EINVAL. */
int kstrtobool(const char *s, bool *out);
