/* Instructions that the engine leaves to its user, or gets wrong: IN/OUT with their permission
 * checks, MSRs, CPUID, TSC, SYSCALL, CR8, PAUSE, RDPMC; and where a translated block must end.
 */
#include "core.h"

#define RA ((uintptr_t)__builtin_return_address(0))

static u64 now_at_host(struct core *c, uintptr_t ra) {
    if (c->tb_insns) {
        int i = insn_index_of_host(c->tb, ra);
        if (i >= 0 && (u32)i < c->tb_insns) return c->clock->ticks - c->tb_insns + (u32)i;
    }
    return c->clock->ticks;
}

/* ---- where blocks end ------------------------------------------------------------------------ */

static void (*engine_translate_insn)(struct disas *, void *);

static bool ends_block(struct env *env, u64 pc, u64 next) {
    while (pc < next) {
        u32 op = real.cpu_ldub_code(env, pc++);
        switch (op) {
        case 0x66: case 0x67: case 0xf0: case 0xf2: case 0xf3:
        case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65:
            continue;
        case 0xe4: case 0xe5: case 0xe6: case 0xe7: /* IN, OUT */
        case 0xec: case 0xed: case 0xee: case 0xef:
        case 0x6c: case 0x6d: case 0x6e: case 0x6f: /* INS, OUTS */
            return true;
        case 0x0f:
            return pc < next && real.cpu_ldub_code(env, pc) == 0x30; /* WRMSR */
        default:
            if (op >= 0x40 && op <= 0x4f && (env->hflags & (1u << 15))) continue; /* REX */
            return false;
        }
    }
    return false;
}

static bool begins_block(struct core *c, u64 pc) {
    for (u64 i = 0, n = c->probe_count; i < n; i++)
        if (c->probe_set[i] == pc) return true;
    if (!(c->env->hflags & (1u << 15))) return false;
    u32 op = real.cpu_ldub_code(c->env, pc);
    return op == 0xc4 || op == 0xc5; /* VEX: must be looked at before it runs */
}

enum { INSN_MAX = 15 };

static void translate_insn(struct disas *d, void *cpu) {
    struct core *c = core_of_cpu(cpu);
    u64 pc = d->pc_next;
    engine_translate_insn(d, cpu);
    if (d->is_jmp != 0 || !c) return;
    /* A block may not run into the next page: the engine would fetch there, and set accessed bits
     * or fault, before the instruction is reached. So an instruction that may cross begins a block. */
    if (((d->pc_next + INSN_MAX - 1) ^ d->pc_first) & PAGE_MASK || ends_block(c->env, pc, d->pc_next) ||
        begins_block(c, d->pc_next))
        d->is_jmp = 1; /* DISAS_TOO_MANY: go on in another block */
}

EXPORT void translator_loop_x86_64(struct ops *ops, struct disas *d, void *cpu, struct tb *tb, int max_insns) {
    struct core *c = core_of_cpu(cpu);
    struct ops mine = *ops;
    if (c) {
        engine_translate_insn = ops->translate_insn;
        mine.translate_insn = translate_insn;
        ops = &mine;
    }
    real.translator_loop(ops, d, cpu, tb, max_insns);
}

/* ---- ports ------------------------------------------------------------------------------------- */

static void check_io(struct core *c, u32 port, void (*check)(void *, u32), uintptr_t ra) {
    if ((c->env->hflags & 3) > (c->env->eflags >> 12 & 3)) {
        real.cpu_restore_state(c->cpu, ra, true);
        check(c->env, port & 0xffff); /* TSS bitmap; raises #GP */
    }
}

#define IN(name, check, size)                                                                      \
    EXPORT u64 name##_x86_64(void *env, u32 port) {                                                \
        uintptr_t ra = RA;                                                                         \
        struct core *c = core_of_env(env);                                                         \
        if (!c) return real.name(env, port);                                                       \
        check_io(c, port, real.check, ra);                                                         \
        c->io_reads++;                                                                             \
        u64 value = c->cb.io_read(port & 0xffff, size, now_at_host(c, ra));                        \
        relimit(c);                                                                                \
        return value;                                                                              \
    }
#define OUT(name, check, size, mask)                                                               \
    EXPORT void name##_x86_64(void *env, u32 port, u32 value) {                                    \
        uintptr_t ra = RA;                                                                         \
        struct core *c = core_of_env(env);                                                         \
        if (!c) {                                                                                  \
            real.name(env, port, value);                                                           \
            return;                                                                                \
        }                                                                                          \
        check_io(c, port, real.check, ra);                                                         \
        c->io_writes++;                                                                            \
        c->cb.io_write(port & 0xffff, size, value & (mask), now_at_host(c, ra));                   \
        relimit(c);                                                                                \
        if (unlikely(c->uncounted) && c->stop_request) real.uc_emu_stop(c->uc);                                                                                \
    }
IN(helper_inb, helper_check_iob, 1)
IN(helper_inw, helper_check_iow, 2)
IN(helper_inl, helper_check_iol, 4)
OUT(helper_outb, helper_check_iob, 1, 0xffu)
OUT(helper_outw, helper_check_iow, 2, 0xffffu)
OUT(helper_outl, helper_check_iol, 4, 0xffffffffu)

/* ---- time, identity ----------------------------------------------------------------------------- */

EXPORT u64 cpu_get_tsc_x86_64(void *env) {
    struct core *c = core_of_env(env);
    if (!c) return real.cpu_get_tsc(env);
    return now_at_eip(c) + c->tsc_offset;
}

EXPORT void cpu_x86_cpuid_x86_64(void *env, u32 leaf, u32 sub, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx) {
    struct core *c = core_of_env(env);
    if (!c || !c->cpuid_rows) {
        real.cpu_x86_cpuid(env, leaf, sub, eax, ebx, ecx, edx);
        return;
    }
    *eax = *ebx = *ecx = *edx = 0;
    for (u32 i = 0; i < c->cpuid_rows; i++) {
        const struct cpuid_row *r = &c->cpuid[i];
        if (r->leaf == leaf && (r->subleaf == NEVER >> 32 || r->subleaf == sub)) {
            *eax = r->eax, *ebx = r->ebx, *ecx = r->ecx, *edx = r->edx;
            break;
        }
    }
    if (leaf == 1 && (*ecx & (1u << 26)) && (c->env->cr[4] & (1u << 18))) *ecx |= 1u << 27; /* OSXSAVE */
}

/* ---- MSRs ------------------------------------------------------------------------------------------ */

enum { MSR_TSC = 0x10, MSR_TSC_ADJUST = 0x3b };

static bool apic_msr(u32 msr) { return msr == 0x1b || msr == 0x6e0 || (msr >= 0x800 && msr <= 0x8ff); }

/* MSRs that the engine keeps in registers of its own. All others read zero and ignore writes. */
static bool engine_msr(u32 msr) {
    switch (msr) {
    case 0xfe: case 0x174: case 0x175: case 0x176: case 0x1a0: case 0x277: case 0x2ff:
    case 0x250: case 0x258: case 0x259:
    case 0xc0000080: case 0xc0000081: case 0xc0000082: case 0xc0000083: case 0xc0000084:
    case 0xc0000100: case 0xc0000101: case 0xc0000102: case 0xc0000103:
    case 0xc0010114: case 0xc0010117:
        return true;
    }
    return (msr >= 0x200 && msr <= 0x20f) || (msr >= 0x268 && msr <= 0x26f);
}

EXPORT void helper_wrmsr_x86_64(void *env) {
    uintptr_t ra = RA;
    struct core *c = core_of_env(env);
    if (!c) {
        real.helper_wrmsr(env);
        return;
    }
    real.cpu_svm_check_intercept_param(env, 0x7c, 1, ra);
    u32 msr = (u32)c->env->regs[1];
    u64 value = (u32)c->env->regs[0] | c->env->regs[2] << 32;
    u64 now = now_at_host(c, ra);
    if (apic_msr(msr)) {
        int done = c->cb.msr_write(msr, value, now);
        relimit(c);
        if (!done) real.raise_exception_err_ra(env, 13, 0, ra);
    } else if (msr == MSR_TSC) {
        c->tsc_offset = value - now;
        c->cb.msr_write(msr, value, now); /* a TSC deadline may have moved */
        relimit(c);
    } else if (msr == MSR_TSC_ADJUST) {
        c->tsc_offset = value;
        c->cb.msr_write(msr, value, now);
        relimit(c);
    } else if (msr == 0xc0000103) {
        ENV_AT(c, u64, ENV_TSC_AUX) = (u32)value;
    } else if (engine_msr(msr)) {
        real.helper_wrmsr(env);
    }
}

EXPORT void helper_rdmsr_x86_64(void *env) {
    uintptr_t ra = RA;
    struct core *c = core_of_env(env);
    if (!c) {
        real.helper_rdmsr(env);
        return;
    }
    u32 msr = (u32)c->env->regs[1];
    u64 value = 0, now = now_at_host(c, ra);
    real.cpu_svm_check_intercept_param(env, 0x7c, 0, ra);
    if (apic_msr(msr)) {
        int done = c->cb.msr_read(msr, &value, now);
        relimit(c);
        if (!done) real.raise_exception_err_ra(env, 13, 0, ra);
    } else if (msr == MSR_TSC) {
        value = now + c->tsc_offset;
    } else if (msr == MSR_TSC_ADJUST) {
        value = c->tsc_offset;
    } else if (msr == 0xc0010015) {
        value = 1u << 24; /* HWCR.TscFreqSel: the TSC counts at the P0 frequency */
    } else if (engine_msr(msr)) {
        real.helper_rdmsr(env);
        return;
    }
    c->env->regs[0] = (u32)value;
    c->env->regs[2] = value >> 32;
}

EXPORT void helper_rdpmc_x86_64(void *env) {
    uintptr_t ra = RA;
    if (!core_of_env(env)) real.helper_rdpmc(env);
    else real.raise_exception_err_ra(env, 13, 0, ra); /* there are no counters */
}

/* ---- control flow ------------------------------------------------------------------------------------ */

EXPORT void helper_write_crN_x86_64(void *env, int reg, u64 value) {
    uintptr_t ra = RA;
    struct core *c = core_of_env(env);
    if (c && reg == 8 && !(c->env->hflags2 & 8)) {
        real.cpu_svm_check_intercept_param(env, 0x10 + 8, 0, ra);
        c->cb.cr8_write(value, now_at_host(c, ra));
        relimit(c);
        return;
    }
    /* The original would look for its own caller when it exits to a hypervisor. */
    if (c) real.cpu_svm_check_intercept_param(env, 0x10 + (u32)reg, 0, ra);
    real.helper_write_crN(env, reg, value);
}

EXPORT u64 helper_read_crN_x86_64(void *env, int reg) {
    uintptr_t ra = RA;
    struct core *c = core_of_env(env);
    if (c && reg == 8 && !(c->env->hflags2 & 8)) {
        real.cpu_svm_check_intercept_param(env, 8, 0, ra);
        return c->cb.cr8_read(now_at_host(c, ra));
    }
    if (c) real.cpu_svm_check_intercept_param(env, (u32)reg, 0, ra);
    return real.helper_read_crN(env, reg);
}

#define FLAGS_CC 0x8d5u /* OF SF ZF AF PF CF */
#define FLAG_DF 0x400u

void load_flags(struct env *env, u64 flags) {
    env->cc_src = flags & FLAGS_CC;
    env->cc_op = 1; /* flags are in cc_src */
    env->df = flags & FLAG_DF ? -1 : 1;
    env->eflags = (flags & ~(u64)(FLAGS_CC | FLAG_DF)) | 2;
}

EXPORT void helper_syscall_x86_64(void *env_, int insn_size) {
    uintptr_t ra = RA;
    struct core *c = core_of_env(env_);
    if (!c) {
        real.helper_syscall(env_, insn_size);
        return;
    }
    struct env *env = c->env;
    if (!(ENV_AT(c, u64, ENV_EFER) & 1)) real.raise_exception_err_ra(env, 6, 0, ra);
    c->syscalls++;
    user_left(c);
    u64 star = ENV_AT(c, u64, ENV_STAR);
    u32 selector = (u32)(star >> 32) & 0xfffc;
    u64 flags = real.helper_read_eflags(env);
    struct segment code = {selector, 0, 0, 0xffffffff, 0x00af9b00};
    struct segment stack = {(selector + 8) & 0xfffc, 0, 0, 0xffffffff, 0x00cf9300};
    if (env->hflags & (1u << 14)) { /* long mode */
        env->regs[1] = env->eip + (u64)insn_size;
        env->regs[11] = flags;
        env->eip = ENV_AT(c, u64, env->hflags & (1u << 15) ? ENV_LSTAR : ENV_CSTAR);
        load_flags(env, flags & ~ENV_AT(c, u64, ENV_FMASK) & ~0x10000UL);
        env->hflags = (env->hflags & ~(3u | 1u << 6)) | 1u << 4 | 1u << 5 | 1u << 15;
    } else {
        env->regs[1] = (u32)(env->eip + (u64)insn_size);
        env->eip = (u32)star;
        load_flags(env, flags & ~(u64)0x30200); /* VM, RF, IF */
        code.flags = 0x00cf9b00;
        env->hflags = (env->hflags & ~(3u | 1u << 6 | 1u << 15)) | 1u << 4 | 1u << 5;
    }
    env->segs[1] = code;
    env->segs[2] = stack;
}

/* The engine keeps the address of the last x87 instruction, saves it, but does not restore it. */
EXPORT void helper_fxrstor_x86_64(void *env, u64 addr) {
    uintptr_t ra = RA;
    struct core *c = core_of_env(env);
    if (c) real.cpu_restore_state(c->cpu, ra, true); /* it may fault, and looks at its caller */
    real.helper_fxrstor(env, addr);
    if (c) {
        ENV_AT(c, u64, ENV_FPIP) = real.cpu_ldq_data_ra(env, addr + 8, ra);
    }
}

/* Returns to user mode are always the last instruction of their block: the clock is exact. */
static void returned(struct core *c, u32 cpl_before) {
    if ((c->env->hflags & 3) != 3 || cpl_before == 3) return;
    if (c->user_entered == NEVER) c->user_entered = c->clock->ticks;
    if (c->watch_user) {
        c->cb.user(c->clock->ticks);
        relimit(c);
    }
}

#define RETURN(name, params, args)                                                                 \
    EXPORT void name##_x86_64 params {                                                             \
        uintptr_t ra = RA;                                                                         \
        struct core *c = core_of_env(env);                                                         \
        u32 cpl = c ? c->env->hflags & 3 : 3;                                                      \
        if (c) real.cpu_restore_state(c->cpu, ra, true); /* it may fault, and looks at its caller */ \
        real.name args;                                                                            \
        if (c) returned(c, cpl);                                                                   \
    }
RETURN(helper_sysret, (void *env, int size), (env, size))
RETURN(helper_sysexit, (void *env, int size), (env, size))
RETURN(helper_iret_protected, (void *env, int shift, int next), (env, shift, next))
RETURN(helper_lret_protected, (void *env, int shift, int add), (env, shift, add))

EXPORT void helper_lcall_protected_x86_64(void *env, int selector, u64 eip, int shift, u64 next) {
    uintptr_t ra = RA;
    struct core *c = core_of_env(env);
    if (c) real.cpu_restore_state(c->cpu, ra, true); /* it may fault, and looks at its caller */
    real.helper_lcall_protected(env, selector, eip, shift, next);
}

/* The engine would load a null selector. */
EXPORT void helper_ltr_x86_64(void *env, int selector) {
    uintptr_t ra = RA;
    struct core *c = core_of_env(env);
    if (c && !(selector & 0xfffc)) real.raise_exception_err_ra(env, 13, 0, ra);
    if (c) real.cpu_restore_state(c->cpu, ra, true); /* it may fault, and looks at its caller */
    real.helper_ltr(env, selector);
}

/* The engine leaves its main loop for every PAUSE; going on with the next block is enough. */
EXPORT void helper_pause_x86_64(void *env, int insn_size) {
    uintptr_t ra = RA;
    struct core *c = core_of_env(env);
    if (!c) {
        real.helper_pause(env, insn_size);
        return;
    }
    real.cpu_svm_check_intercept_param(env, 0x77, 0, ra);
    c->env->eip += (u64)insn_size;
    c->tb = NULL;
    c->tb_insns = 0;
    CPU_AT(c, int, CPU_EXCEPTION) = -1;
    real.cpu_loop_exit(c->cpu);
}
