/* The run loop: exact instruction count, exact stops, exceptions and interrupts.
 *
 * Time is charged a block at a time. The engine calls `on_block` before each translated block; it
 * adds the block's instruction count to the clock. When something is due inside the block, the
 * block is cut so that it ends exactly there. A fault in mid-block gives back what was not
 * executed. Instructions that can move a deadline or an interrupt line (port and MMIO accesses,
 * WRMSR) are always the last of their block, so whatever they cause is seen at the very next
 * instruction, whichever way the code was cut into blocks.
 */
#include "core.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

struct real real;

static struct core *cores[1024];
static u32 core_count;
static __thread struct core *last_core;
static u32 freed_count;            /* cores that were freed: what threads remember may be gone */
static __thread u32 last_freed_count;
static bool listing; /* some thread changes the list of cores */

static void lock_list(void) {
    while (__atomic_test_and_set(&listing, __ATOMIC_ACQUIRE)) sched_yield();
}
static void unlock_list(void) { __atomic_clear(&listing, __ATOMIC_RELEASE); }

struct core *core_of_cpu(void *cpu) {
    struct core *c = last_core;
    if (likely(c && last_freed_count == freed_count && c->cpu == cpu)) return c;
    last_freed_count = freed_count;
    last_core = NULL;
    for (u32 i = 0; i < core_count; i++) {
        c = cores[i];
        if (c && c->cpu == cpu) return last_core = c;
    }
    return NULL; /* an engine that is not ours: leave it alone */
}

/* Fill `real` from the library handle; returns the first missing name, or NULL. */
EXPORT const char *core_bind(void *lib) {
#define BIND(ret, name, args)                                                                      \
    if (!(real.name = (ret(*) args)dlsym(lib, #name "_x86_64"))) return #name "_x86_64";
    REAL_FUNCTIONS(BIND)
#undef BIND
#define BIND_X87(name)                                                                             \
    if (!(*(void **)&real.name = dlsym(lib, #name "_x86_64"))) return #name "_x86_64";
#define BIND_X87_TYPED(type, name) BIND_X87(name)
    X87_PLAIN(BIND_X87)
    X87_REGISTER(BIND_X87)
    X87_STORE(BIND_X87_TYPED)
    X87_LOAD(BIND_X87_TYPED)
#define BIND_PLAIN(name)                                                                           \
    if (!(*(void **)&real.name = dlsym(lib, #name))) return #name;
    BIND_PLAIN(qemu_system_reset_request)
    BIND_PLAIN(uc_emu_start)
    BIND_PLAIN(uc_emu_stop)
#undef BIND_PLAIN
    return NULL;
}

/* ---- where inside a block are we? --------------------------------------------------------- */

static int64_t sleb128(const u8 **p) {
    int64_t value = 0;
    int shift = 0;
    u8 byte;
    do {
        byte = *(*p)++;
        value |= (int64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80);
    if (shift < 64 && (byte & 0x40)) value |= -(1L << shift);
    return value;
}

/* Each translated block is followed by a table: per instruction the differences of guest pc, lazy
 * flags state and end of host code, as signed LEB128. */
static int insn_index_of_pc(struct tb *tb, u64 pc) {
    const u8 *p = tb->code + tb->code_size;
    u64 at = tb->pc;
    for (int i = 0; i < tb->icount; i++) {
        at += (u64)sleb128(&p);
        sleb128(&p);
        sleb128(&p);
        if (at == pc) return i;
    }
    return -1;
}

int insn_index_of_host(struct tb *tb, uintptr_t ra) {
    const u8 *p = tb->code + tb->code_size;
    uintptr_t host = (uintptr_t)tb->code;
    for (int i = 0; i < tb->icount; i++) {
        sleb128(&p);
        sleb128(&p);
        host += (uintptr_t)sleb128(&p);
        if (host > ra - 1) return i;
    }
    return -1;
}

static u64 last_pc(struct tb *tb) {
    const u8 *p = tb->code + tb->code_size;
    u64 at = tb->pc;
    for (int i = 0; i < tb->icount; i++) {
        at += (u64)sleb128(&p);
        sleb128(&p);
        sleb128(&p);
    }
    return at;
}

static u64 linear_eip(struct core *c) {
    /* Block addresses are linear: CS.base + EIP (CS.base is 0 in 64-bit mode). */
    return c->tb ? c->env->eip + c->tb->cs_base : c->env->eip;
}

/* The tick of the instruction at env->eip, which a helper has synchronised. */
u64 now_at_eip(struct core *c) {
    if (c->tb_insns) {
        int i = insn_index_of_pc(c->tb, linear_eip(c));
        if (i >= 0 && (u32)i <= c->tb_insns) return c->clock->ticks - c->tb_insns + (u32)i;
    }
    return c->clock->ticks;
}

/* Give back the charge of all instructions from env->eip on: they did not retire. */
void uncharge(struct core *c) {
    if (!c->tb_insns) return;
    int i = insn_index_of_pc(c->tb, linear_eip(c));
    if (i >= 0 && (u32)i < c->tb_insns) {
        c->clock->ticks -= c->tb_insns - (u32)i;
        c->tb_insns = (u32)i;
    }
}

/* ---- block callback ------------------------------------------------------------------------ */

#define BLOCKS_SEEN 65536u
#define MARK 0x80000000u /* block begins with a probed or an illegal instruction */

void forget_blocks(struct core *c) {
    memset(c->blocks_seen, 0, BLOCKS_SEEN * sizeof *c->blocks_seen);
    c->tb = NULL;
    c->tb_insns = 0;
}

void relimit(struct core *c) {
    u64 limit = c->clock->deadline < c->end ? c->clock->deadline : c->end;
    if (c->flush_at < limit) limit = c->flush_at;
    if (c->irq | c->nmi | c->stop_request | c->stale | c->data_breakpoints || c->tlb_live >= TLB_LIVE_MAX)
        limit = 0;
    c->limit = limit;
}
EXPORT void core_relimit(struct core *c) { relimit(c); }

static bool interrupts_enabled(struct core *c) {
    /* A guest's IF masks only virtual interrupts if its VMCB says so: then the host's decides. */
    bool own = c->env->hflags2 & 8 ? c->env->hflags2 & 2 : c->env->eflags & 0x200;
    return (c->env->hflags2 & 1) && own; /* and GIF */
}
static bool interruptible(struct core *c) {
    /* Not in the shadow of STI or MOV SS. */
    return interrupts_enabled(c) && ((c->env->hflags2 & 8) || !(c->env->hflags & 8));
}
static bool nmi_possible(struct core *c) {
    return (c->env->hflags2 & 1) && !(c->env->hflags2 & 4) && !(c->env->hflags & 8);
}

static _Noreturn void restart(struct core *c) {
    c->tb = NULL;
    c->tb_insns = 0;
    CPU_AT(c, int, CPU_EXCEPTION) = -1;
    real.cpu_loop_exit(c->cpu);
    __builtin_unreachable();
}

static bool probed(struct core *c, u64 pc) {
    u64 lo = 0, hi = c->probe_count;
    while (lo < hi) {
        u64 mid = (lo + hi) / 2;
        if (c->probe_set[mid] < pc) lo = mid + 1;
        else hi = mid;
    }
    return lo < c->probe_count && c->probe_set[lo] == pc;
}

/* VEX encodings (AVX, BMI) are not offered, but the engine would run AVX as SSE: make them #UD. */
static bool is_vex(struct core *c, u64 pc) {
    if (!(c->env->hflags & (1u << 15))) return false; /* only 64-bit code: C4/C5 are LES/LDS else */
    u32 op = real.cpu_ldub_code(c->env, pc);
    return op == 0xc4 || op == 0xc5;
}

/* Returns true when the block must not run (the engine stops before it). */
static NOINLINE bool slow_path(struct core *c, u64 pc, u32 insns) {
    struct clock *clk = c->clock;
    if (clk->ticks >= clk->deadline) c->cb.events(clk->ticks);
    if (c->stale) {
        c->stale = false;
        relimit(c);
        restart(c);
    }
    if (clk->ticks >= c->flush_at || c->tlb_live >= TLB_LIVE_MAX) {
        while (c->flush_at <= clk->ticks) c->flush_at += c->flush_grid;
        itlb_flush(c);
        engine_tlb_flush(c);
        relimit(c);
        restart(c); /* look the block up again: that refills its own page's translation */
    }
    if (c->data_breakpoints) { /* a trap: after the instruction that made the access */
        ENV_AT(c, u64, ENV_DR + 48) |= c->data_breakpoints;
        c->data_breakpoints = 0;
        relimit(c);
        c->tb = NULL, c->tb_insns = 0;
        real.raise_exception(c->env, 1);
    }
    if (c->nmi && nmi_possible(c)) {
        c->tb = NULL, c->tb_insns = 0;
        real.cpu_svm_check_intercept_param(c->env, 0x61, 0, 0); /* NMI */
        c->nmi = 0;
        c->interrupts++;
        c->env->hflags2 |= 4;
        user_left(c);
        relimit(c);
        c->tb = NULL, c->tb_insns = 0;
        real.do_interrupt_x86_hardirq(c->env, 2, 1);
        restart(c);
    }
    if (c->irq && interruptible(c)) {
        c->tb = NULL, c->tb_insns = 0;
        real.cpu_svm_check_intercept_param(c->env, 0x60, 0, 0); /* INTR: may leave for the hypervisor */
        int vector = c->cb.acknowledge(clk->ticks);
        relimit(c);
        if (vector >= 0) {
            c->interrupts++;
            user_left(c);
            c->tb = NULL, c->tb_insns = 0;
            real.do_interrupt_x86_hardirq(c->env, vector, 1);
            restart(c);
        }
    }
    relimit(c);
    if (clk->ticks >= c->end || c->stop_request) {
        c->stop = clk->ticks >= c->end && !c->stop_request ? STOP_END : STOP_REQUEST;
        c->tb = NULL, c->tb_insns = 0;
        real.uc_emu_stop(c->uc);
        return true;
    }
    u64 until = clk->deadline < c->end ? clk->deadline : c->end;
    if (c->flush_at < until) until = c->flush_at;
    bool marked = insns & MARK;
    insns &= ~MARK;
    if (clk->ticks + insns > until) {
        c->splits++;
        CPU_AT(c, u32, CPU_CFLAGS_NEXT) = (u32)(until - clk->ticks);
        restart(c);
    }
    if (marked) {
        if (probed(c, pc) && !(c->probed_at == clk->ticks && c->probed_pc == pc)) {
            c->probed_at = clk->ticks;
            c->probed_pc = pc;
            int stop = c->cb.probe(pc, clk->ticks);
            relimit(c);
            if (stop || c->stop_request) {
                c->stop = STOP_REQUEST;
                c->tb = NULL, c->tb_insns = 0;
                real.uc_emu_stop(c->uc);
                return true;
            }
            /* The observer may have added or removed probes, which drops translations. */
            restart(c);
        }
        if (is_vex(c, pc)) {
            c->tb = NULL, c->tb_insns = 0;
            real.raise_exception(c->env, 6);
        }
    }
    return false;
}

static void on_block(void *uc, u64 pc, u32 size, void *user) {
    (void)uc, (void)size;
    struct core *c = user;
    uintptr_t ra = (uintptr_t)__builtin_return_address(0);
    u32 h = (u32)((ra >> 4) ^ (ra >> 20)) & (BLOCKS_SEEN - 1);
    u32 insns;
    struct tb *tb;
    /* Host code is placed anew only after a flush of all of it, which empties this table. */
    if (likely(c->blocks_seen[h].ra == ra)) {
        insns = c->blocks_seen[h].insns;
        tb = c->blocks_seen[h].tb;
    } else {
        tb = real.tcg_tb_lookup(c->tcg, ra);
        if (!tb || tb->pc != pc) {
            c->stop = STOP_INTERNAL;
            c->tb = NULL, c->tb_insns = 0;
            real.uc_emu_stop(c->uc);
            return;
        }
        insns = tb->icount;
        if ((c->probe_count && probed(c, pc)) || is_vex(c, pc)) insns |= MARK;
        c->blocks_seen[h].ra = ra;
        c->blocks_seen[h].insns = insns;
        c->blocks_seen[h].tb = tb;
    }
    if (unlikely(c->clock->ticks + insns > c->limit)) {
        if (slow_path(c, pc, insns)) return;
        insns &= ~MARK;
    }
    c->clock->ticks += insns;
    c->tb = tb;
    c->tb_insns = insns;
}

/* ---- exceptions ---------------------------------------------------------------------------- */

/* A handler whose first instruction faults, or whose entry in the IDT does, may go round for ever without one instruction
 * retiring: time stands still, and no limit of the run is ever reached. */
static void count_fault(struct core *c) {
    u64 now = c->clock->ticks;
    c->faults = c->faults_at == now ? c->faults + 1 : 0;
    c->faults_at = now;
    if (c->faults < FAULTS_MAX || c->uncounted) return;
    c->stop = STOP_LIVELOCK;
    real.uc_emu_stop(c->uc);
}

static void account_exception(struct core *c, u32 vector) {
    c->exceptions++;
    if (vector < 32) c->exceptions_by_vector[vector]++;
    c->store_addr = NEVER;
    bool trap = vector == 1 && (ENV_AT(c, u64, ENV_DR + 48) & 0x4000); /* single step: retired */
    if (vector < 256 && ENV_AT(c, int, ENV_EXC_IS_INT)) {
        /* INT n, INT3, INTO: the last instruction of its block, which retires. The engine has moved
         * EIP past it; a fault in the delivery must report the instruction itself. */
        if (c->tb_insns) c->env->eip = last_pc(c->tb) - c->tb->cs_base;
    } else if (!trap) {
        uncharge(c);
    }
    user_left(c);
    c->last_vector = vector;
    c->last_error = ENV_AT(c, u32, ENV_ERROR_CODE);
    c->last_rip = c->env->eip;
    c->last_cr2 = c->env->cr[2];
    count_fault(c);
}

static void on_exception(void *uc, u32 vector, void *user) {
    (void)uc;
    struct core *c = user;
    account_exception(c, vector);
    real.x86_cpu_do_interrupt(c->cpu);
}

static bool on_invalid(void *uc, void *user) {
    (void)uc;
    struct core *c = user;
    account_exception(c, 6);
    CPU_AT(c, int, CPU_EXCEPTION) = 6;
    real.x86_cpu_do_interrupt(c->cpu);
    return true;
}

/* The engine gives up the whole process where a change of privilege needs a TSS and the task register
 * holds none (null, or by VMLOAD one that is not present): to the guest that is #TS. */
EXPORT void cpu_abort_x86_64(void *cpu, const char *why, ...) {
    struct core *c = core_of_cpu(cpu);
    if (!c || strncmp(why, "invalid tss", 11)) abort(); /* nothing to return to */
    real.raise_exception_err_ra(c->env, 10, (int)(c->env->tr.selector & 0xfffc), 0);
    __builtin_unreachable();
}

EXPORT void qemu_system_reset_request(void *uc) {
    for (u32 i = 0; i < core_count; i++)
        if (cores[i] && cores[i]->uc == uc) cores[i]->triple = true;
    real.qemu_system_reset_request(uc);
}

/* A store into the running block makes the engine leave it in the middle. */
EXPORT void cpu_loop_exit_noexc_x86_64(void *cpu) {
    struct core *c = core_of_cpu(cpu);
    if (c) {
        uncharge(c);
        c->tb = NULL;
        c->tb_insns = 0;
    }
    real.cpu_loop_exit_noexc(cpu);
}

/* Unless the instruction that is being executed is the last of its block, leave the block before it
 * and run it in a block of its own, so that what it causes is seen right after it. Only for accesses
 * that have had no effect yet. */
void leave_block(struct core *c, uintptr_t ra) {
    if (!ra || !c->tb_insns) return;
    int i = insn_index_of_host(c->tb, ra);
    if (i < 0 || (u32)i + 1 >= c->tb->icount) return;
    real.cpu_restore_state(c->cpu, ra, true);
    CPU_AT(c, u32, CPU_CFLAGS_NEXT) = 1;
    cpu_loop_exit_noexc_x86_64(c->cpu);
}

/* ---- memory-mapped devices ------------------------------------------------------------------ */

/* Tick of the access being made, by the last instruction of a block. */
static u64 mmio_now(struct core *c) {
    uintptr_t ra = CPU_AT(c, uintptr_t, CPU_MEM_IO_PC);
    /* A page walk does not set it: what is there then is of an earlier access, by another block. */
    if (!c->tb_insns || ra - (uintptr_t)c->tb->code > c->tb->code_size) return c->clock->ticks;
    leave_block(c, ra);
    int i = insn_index_of_host(c->tb, ra);
    if (i < 0 || (u32)i >= c->tb_insns) return c->clock->ticks;
    return c->clock->ticks - c->tb_insns + (u32)i;
}

static u64 on_mmio_read(void *uc, u64 offset, unsigned size, void *user) {
    (void)uc;
    struct core *c = ((struct core **)user)[0];
    u64 base = ((u64 *)user)[1];
    u64 now = mmio_now(c);
    c->mmio_reads++;
    u64 value = c->cb.mmio_read(base + offset, size, now);
    relimit(c);
    return value;
}
static void on_mmio_write(void *uc, u64 offset, unsigned size, u64 value, void *user) {
    (void)uc;
    struct core *c = ((struct core **)user)[0];
    u64 base = ((u64 *)user)[1];
    u64 now = mmio_now(c);
    c->mmio_writes++;
    c->cb.mmio_write(base + offset, size, value, now);
    relimit(c);
}

/* ---- life ----------------------------------------------------------------------------------- */

EXPORT void *core_new(void *uc, void *cpu, void *tcg, struct clock *clock, struct ram *ram,
                      const struct callbacks *cb) {
    if (ram->engines == MAX_ENGINES) return NULL;
    struct core *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->blocks_seen = calloc(BLOCKS_SEEN, sizeof *c->blocks_seen);
    if (!c->blocks_seen || !itlb_init(c)) {
        free(c->blocks_seen);
        free(c);
        return NULL;
    }
    c->uc = uc;
    c->cpu = cpu;
    c->tcg = tcg;
    c->env = (struct env *)((char *)cpu + CPU_TO_ENV);
    c->clock = clock;
    c->ram = ram;
    c->cb = *cb;
    c->end = c->limit = c->flush_at = c->flush_grid = c->user_entered = NEVER;
    c->store_addr = c->last_page = c->probed_at = NEVER;
    lock_list();
    u32 slot = 0;
    while (slot < core_count && cores[slot]) slot++;
    if (slot == sizeof cores / sizeof *cores) {
        unlock_list();
        free(c->blocks_seen);
        free(c->tlb);
        free(c);
        return NULL;
    }
    cores[slot] = c;
    if (slot == core_count) core_count++;
    unlock_list();
    ram->engine[ram->engines++] = c;
    return c;
}

EXPORT void core_free(struct core *c) {
    lock_list();
    for (u32 i = 0; i < core_count; i++)
        if (cores[i] == c) cores[i] = NULL;
    freed_count++;
    unlock_list();
    for (u64 i = 0; i < c->ram->engines; i++)
        if (c->ram->engine[i] == c) {
            c->ram->engine[i] = c->ram->engine[--c->ram->engines];
            break;
        }
    free(c->blocks_seen);
    free(c->tlb);
    free(c);
}

/* Callback addresses for uc_hook_add and uc_mmio_map. */
EXPORT void *core_hook(int which) {
    void *const hooks[] = {(void *)on_block, (void *)on_exception, (void *)on_invalid,
                           (void *)on_mmio_read, (void *)on_mmio_write, (void *)memory_mapping};
    return hooks[which];
}

EXPORT int core_probes(struct core *c, const u64 *sorted, u64 count) {
    if (count > sizeof c->probe_set / sizeof *c->probe_set) return -1;
    memcpy(c->probe_set, sorted, count * sizeof *sorted);
    c->probe_count = count;
    real.tb_flush(c->cpu); /* blocks must begin at probed instructions */
    forget_blocks(c);
    forget_code(c);
    return 0;
}

EXPORT int core_cpuid(struct core *c, const struct cpuid_row *rows, u32 count) {
    if (count > sizeof c->cpuid / sizeof *c->cpuid) return -1;
    memcpy(c->cpuid, rows, count * sizeof *rows);
    c->cpuid_rows = count;
    return 0;
}

/* Let a halted CPU's time pass up to `end`. Returns true when an interrupt woke it. */
static bool idle(struct core *c, u64 end) {
    struct clock *clk = c->clock;
    for (;;) {
        if (c->nmi && nmi_possible(c)) return true;
        if (c->irq && interrupts_enabled(c)) return true;
        if (c->stop_request) {
            c->stop = STOP_REQUEST;
            return false;
        }
        if (clk->deadline == NEVER) { /* nothing will ever wake it */
            c->stop = STOP_DEADLOCK;
            return false;
        }
        u64 next = clk->deadline < end ? clk->deadline : end;
        if (next > clk->ticks) {
            clk->skipped += next - clk->ticks;
            clk->ticks = next;
        }
        if (clk->deadline <= clk->ticks) {
            c->cb.events(clk->ticks);
            continue;
        }
        if (clk->ticks >= end) {
            c->stop = STOP_END;
            return false;
        }
    }
}

/* Run until tick `end`, or until something else ends the run. Returns enum stop. */
EXPORT int core_run(struct core *c, u64 end) {
    struct clock *clk = c->clock;
    last_core = c;
    last_freed_count = freed_count;
    c->end = end;
    c->stop = STOP_NONE;
    for (;;) {
        if (clk->ticks >= end) return (int)(c->stop = STOP_END);
        if (c->faults >= FAULTS_MAX && c->faults_at == clk->ticks) return (int)(c->stop = STOP_LIVELOCK);
        if (c->halted) {
            /* With interrupts off nothing can wake it (there is no NMI source pending). */
            if (!interrupts_enabled(c) && !c->nmi) return (int)(c->stop = STOP_DEADLOCK);
            if (!idle(c, end)) return (int)c->stop;
            c->halted = 0;
        }
        relimit(c);
        c->tb = NULL;
        c->tb_insns = 0;
        c->triple = false;
        CPU_AT(c, u32, CPU_HALTED) = 0;
        int error = real.uc_emu_start(c->uc, c->env->eip, 0xffffffffffff0000UL, 0, 0);
        if (c->triple) return (int)(c->stop = STOP_TRIPLE);
        if (error) {
            c->engine_error = (u64)error;
            return (int)(c->stop = STOP_ENGINE);
        }
        if (c->stop) return (int)c->stop;
        if (c->uncounted && c->stop_request) return (int)(c->stop = STOP_REQUEST);
        u32 halted = CPU_AT(c, u32, CPU_HALTED);
        if (!halted) return (int)(c->stop = STOP_TRIPLE);
        if (halted != 1 || CPU_AT(c, int, CPU_EXCEPTION) != -1) return (int)(c->stop = STOP_INTERNAL);
        c->halted = 1;
        if (c->stop_request) return (int)(c->stop = STOP_REQUEST);
    }
}
