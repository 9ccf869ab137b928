/* x87 exception flags: the engine computes them and forgets them.
 *
 * Each operation runs with its flags cleared; what it raised is then entered in the status word, as
 * AMD64 APM vol. 1, 6.8 has it. An unmasked one makes the next waiting x87 instruction fault, which
 * the engine does by itself.
 */
#include "core.h"

enum { IE = 1, DE = 2, ZE = 4, OE = 8, UE = 16, PE = 32, ES = 0x80, BUSY = 0x8000 };

static u8 begin(struct core *c) {
    u8 *flags = &ENV_AT(c, u8, ENV_FP_FLAGS), old = *flags;
    *flags = 0;
    return old;
}

static void finish(struct core *c, u8 old) {
    u8 *flags = &ENV_AT(c, u8, ENV_FP_FLAGS), raised = *flags;
    *flags = raised | old;
    if (!raised) return;
    /* softfloat: invalid 1, divide by zero 4, overflow 8, underflow 16, inexact 32, denormal 64 */
    u16 status = raised & (IE | ZE | OE | UE | PE);
    if (raised & 64) status |= DE;
    u16 *fpus = &ENV_AT(c, u16, ENV_FPUS);
    *fpus |= status;
    if (*fpus & ~ENV_AT(c, u16, ENV_FPUC) & 0x3f) *fpus |= ES | BUSY;
}

#define PLAIN(name)                                                                                \
    EXPORT void name##_x86_64(void *env) {                                                         \
        struct core *c = core_of_env(env);                                                         \
        u8 old = c ? begin(c) : 0;                                                                 \
        real.name(env);                                                                            \
        if (c) finish(c, old);                                                                     \
    }
#define REGISTER(name)                                                                             \
    EXPORT void name##_x86_64(void *env, int n) {                                                  \
        struct core *c = core_of_env(env);                                                         \
        u8 old = c ? begin(c) : 0;                                                                 \
        real.name(env, n);                                                                         \
        if (c) finish(c, old);                                                                     \
    }
#define STORED(type, name)                                                                         \
    EXPORT type name##_x86_64(void *env) {                                                         \
        struct core *c = core_of_env(env);                                                         \
        u8 old = c ? begin(c) : 0;                                                                 \
        type value = real.name(env);                                                               \
        if (c) finish(c, old);                                                                     \
        return value;                                                                              \
    }
#define LOADED(type, name)                                                                         \
    EXPORT void name##_x86_64(void *env, type value) {                                             \
        struct core *c = core_of_env(env);                                                         \
        u8 old = c ? begin(c) : 0;                                                                 \
        real.name(env, value);                                                                     \
        if (c) finish(c, old);                                                                     \
    }
X87_PLAIN(PLAIN)
X87_REGISTER(REGISTER)
X87_STORE(STORED)
X87_LOAD(LOADED)
