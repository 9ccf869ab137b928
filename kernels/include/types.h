/* Integer types of the kernel, and the few macros that every file uses. */
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef static_assert
#define static_assert _Static_assert
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef s64 ssize_t;
typedef s64 loff_t;
typedef u64 phys_addr_t;	/* a physical address, in bytes */

#define ARRAY_SIZE(a)		(sizeof(a) / sizeof((a)[0]))
#define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))
#define min(a, b)		({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ < b_ ? a_ : b_; })
#define max(a, b)		({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ > b_ ? a_ : b_; })
#define ALIGN_DOWN(x, a)	((x) & ~((__typeof__(x))(a) - 1))
#define ALIGN_UP(x, a)		ALIGN_DOWN((x) + (__typeof__(x))(a) - 1, a)
#define IS_ALIGNED(x, a)	(((x) & ((__typeof__(x))(a) - 1)) == 0)
#define DIV_ROUND_UP(n, d)	(((n) + (d) - 1) / (d))

#define likely(x)		__builtin_expect(!!(x), 1)
#define unlikely(x)		__builtin_expect(!!(x), 0)
#define __packed		__attribute__((packed))
#define __aligned(n)		__attribute__((aligned(n)))
#define __used			__attribute__((used))
#define __unused		__attribute__((unused))
#define __section(s)		__attribute__((section(s), used))
#define __printf(f, a)		__attribute__((format(printf, f, a)))
#define noinline		__attribute__((noinline))

#define READ_ONCE(x)		(*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v)	(*(volatile __typeof__(x) *)&(x) = (v))
#define barrier()		__asm__ volatile("" ::: "memory")

#define KIB			(1UL << 10)
#define MIB			(1UL << 20)
#define GIB			(1UL << 30)

/* Reads and writes at any alignment; all formats here are little-endian. */
static inline u32 get_unaligned_u32(const void *p) { u32 v; __builtin_memcpy(&v, p, 4); return v; }
static inline u64 get_unaligned_u64(const void *p) { u64 v; __builtin_memcpy(&v, p, 8); return v; }
static inline void put_unaligned_u32(u32 v, void *p) { __builtin_memcpy(p, &v, 4); }
static inline void put_unaligned_u64(u64 v, void *p) { __builtin_memcpy(p, &v, 8); }
