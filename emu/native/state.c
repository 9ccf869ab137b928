/* The CPU's architectural state as plain 64-bit words, in and out of the engine.
 *
 * Never the engine's raw memory: the upper lanes of its vector registers hold leftovers of the
 * host's stack, and lazily computed flags have many representations of one value.
 * The order of the words is fixed here and named in emu/cpu.py (STATE_WORDS).
 */
#include "core.h"

void load_flags(struct env *env, u64 flags);

/* Plain registers inside env: offset, bytes. */
static const struct {
    u16 offset, size;
} plain[] = {
    {ENV_EFER, 8}, {ENV_XCR0, 8},
    {ENV_DR, 8}, {ENV_DR + 8, 8}, {ENV_DR + 16, 8}, {ENV_DR + 24, 8}, {ENV_DR + 48, 8}, {ENV_DR + 56, 8},
    {ENV_FPSTT, 4}, {ENV_FPUS, 2}, {ENV_FPUC, 2}, {ENV_FPTAGS, 8},
    {ENV_FPOP, 2}, {ENV_FPIP, 8}, {ENV_FPDP, 8}, {ENV_MXCSR, 4},
    {0x12c0, 4}, {0x12c8, 8}, {0x12d0, 8}, /* SYSENTER CS, ESP, EIP */
    {ENV_STAR, 8}, {0x12e0, 8}, {ENV_LSTAR, 8}, {ENV_CSTAR, 8}, {ENV_FMASK, 8}, {0x1300, 8},
    {ENV_TSC_AUX, 8}, {0x1338, 8}, {0x14a0, 8}, /* TSC_AUX, MISC_ENABLE, PAT */
    {0x18b0, 8}, {0x18b8, 8}, {0x18c0, 8}, {0x18c8, 8}, {0x18d0, 8}, {0x18d8, 8}, /* MTRRs */
    {0x18e0, 8}, {0x18e8, 8}, {0x18f0, 8}, {0x18f8, 8}, {0x1900, 8}, {0x1908, 8},
    {0x1910, 8}, {0x1918, 8}, {0x1920, 8}, {0x1928, 8}, {0x1930, 8}, {0x1938, 8}, {0x1940, 8}, {0x1948, 8},
    {0x1950, 8}, {0x1958, 8}, {0x1960, 8}, {0x1968, 8}, {0x1970, 8}, {0x1978, 8}, {0x1980, 8}, {0x1988, 8},
    {0x1580, 8}, {0x1588, 8}, {0x1590, 8}, {0x1598, 8}, {0x15a0, 4}, {0x15a8, 8}, {0x15b0, 4}, {0x15b4, 1},
    {ENV_OLD_EXCEPTION, 4},
};
#define PLAIN (sizeof plain / sizeof *plain)

EXPORT u64 core_state_words(void) { return 16 + 4 + 40 + 4 + PLAIN + 16 + 32 + 8; }

EXPORT void core_state_save(struct core *c, u64 *out) {
    struct env *env = c->env;
    for (int i = 0; i < 16; i++) *out++ = env->regs[i];
    *out++ = env->eip;
    *out++ = real.helper_read_eflags(env) | (env->eflags & 0x30000);
    *out++ = env->hflags;
    *out++ = env->hflags2;
    for (int i = 0; i < 10; i++) {
        const struct segment *s = &env->segs[i]; /* ES CS SS DS FS GS LDTR TR GDTR IDTR */
        *out++ = s->selector;
        *out++ = s->base;
        *out++ = s->limit;
        *out++ = s->flags;
    }
    *out++ = env->cr[0];
    *out++ = env->cr[2];
    *out++ = env->cr[3];
    *out++ = env->cr[4];
    for (u64 i = 0; i < PLAIN; i++) {
        const char *p = (const char *)env + plain[i].offset;
        u64 v = 0;
        __builtin_memcpy(&v, p, plain[i].size);
        *out++ = v;
    }
    for (int i = 0; i < 8; i++) {
        *out++ = ENV_AT(c, u64, ENV_FPREGS + 16 * i);
        *out++ = ENV_AT(c, u16, ENV_FPREGS + 16 * i + 8);
    }
    for (int i = 0; i < 16; i++) {
        *out++ = ENV_AT(c, u64, ENV_XMM + 64 * i);
        *out++ = ENV_AT(c, u64, ENV_XMM + 64 * i + 8);
    }
    *out++ = c->halted;
    *out++ = c->tsc_offset;
    *out++ = c->nmi;
    *out++ = c->irq;
    *out++ = c->flush_at;
    *out++ = c->flush_grid;
    *out++ = c->faults_at;
    *out++ = c->faults;
}

EXPORT void core_state_load(struct core *c, const u64 *in) {
    struct env *env = c->env;
    for (int i = 0; i < 16; i++) env->regs[i] = *in++;
    env->eip = *in++;
    /* Between runs the engine keeps all flags in eflags and takes them from there when it enters. */
    load_flags(env, *in);
    env->eflags |= *in++ & 0xcd5;
    env->hflags = (u32)*in++;
    env->hflags2 = (u32)*in++;
    for (int i = 0; i < 10; i++) {
        struct segment *s = &env->segs[i];
        s->selector = (u32)*in++;
        s->base = *in++;
        s->limit = (u32)*in++;
        s->flags = (u32)*in++;
    }
    env->cr[0] = *in++;
    env->cr[2] = *in++;
    env->cr[3] = *in++;
    env->cr[4] = *in++;
    u32 dr7_old = (u32)ENV_AT(c, u64, ENV_DR + 56);
    for (u64 i = 0; i < PLAIN; i++) {
        char *p = (char *)env + plain[i].offset;
        u64 v = *in++;
        __builtin_memcpy(p, &v, plain[i].size);
    }
    u32 dr7 = (u32)ENV_AT(c, u64, ENV_DR + 56);
    if ((dr7 | dr7_old) & 0xff) { /* hardware breakpoints live in the engine's lists */
        ENV_AT(c, u64, ENV_DR + 56) = dr7_old;
        real.cpu_x86_update_dr7(env, dr7);
    }
    for (int i = 0; i < 8; i++) {
        ENV_AT(c, u64, ENV_FPREGS + 16 * i) = *in++;
        ENV_AT(c, u16, ENV_FPREGS + 16 * i + 8) = (u16)*in++;
    }
    for (int i = 0; i < 16; i++) {
        ENV_AT(c, u64, ENV_XMM + 64 * i) = *in++;
        ENV_AT(c, u64, ENV_XMM + 64 * i + 8) = *in++;
    }
    c->halted = *in++;
    c->tsc_offset = *in++;
    c->nmi = *in++;
    c->irq = *in++;
    c->flush_at = *in++;
    c->flush_grid = *in++;
    c->faults_at = *in++;
    c->faults = *in++;
    real.update_fp_status(env);
    real.update_mxcsr_status(env);
    ENV_AT(c, u32, ENV_ERROR_CODE) = 0;
    ENV_AT(c, u32, ENV_EXC_IS_INT) = 0;
    CPU_AT(c, int, CPU_EXCEPTION) = -1;
    c->tb = NULL;
    c->tb_insns = 0;
    c->stop_request = 0;
}

/* Another point in time: what observers saw last is not to be remembered. */
EXPORT void core_forget_probe(struct core *c) { c->probed_at = NEVER; }

EXPORT void *core_env(struct core *c) { return c->env; }
EXPORT struct core *core_self(struct core *c) { return c; }
