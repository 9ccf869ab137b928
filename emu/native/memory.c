/* Guest RAM seen by the engines: which pages were written, which hold translated code.
 *
 * A store reaches guest RAM through a translation in the engine's TLB. The first store through each
 * comes by here (the engine calls it "not dirty"), which is where a page is noted as written and
 * where translations of its code are dropped. The engine keeps code honest per virtual mapping
 * only; a store through another mapping of the same page (Linux's direct map) would leave stale
 * code running. Here it is per physical page, and for every engine on the same RAM.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>

static u64 ram_offset(const struct ram *m, u64 phys) {
    if (phys < m->low) return phys;
    if (phys >= 1UL << 32) {
        u64 off = phys - (1UL << 32) + m->low;
        if (off >= m->low && off < m->size) return off;
    }
    return NEVER;
}

/* Engine's number of a page -> ours, and back; NEVER when it is not RAM. */
static u64 page_of_ram_addr(const struct ram *m, u64 addr) {
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (addr - m->block[i].ram_addr < m->block[i].size)
            return (addr - m->block[i].ram_addr + m->block[i].offset) >> 12;
    return NEVER;
}
static u64 ram_addr_of_page(const struct ram *m, u64 page) {
    for (int i = 0; i < MAX_BLOCKS; i++)
        if ((page << 12) - m->block[i].offset < m->block[i].size)
            return (page << 12) - m->block[i].offset + m->block[i].ram_addr;
    return NEVER;
}

void ram_dirty(struct ram *m, u64 page) {
    if (!m->dirty[page]) {
        m->dirty[page] = 1;
        m->dirty_list[m->dirty_count++] = (u32)page;
    }
}

/* Hand over the pages written since the last drain: copies at most `max` page numbers to `out`,
 * forgets them, and makes the next store to each be noticed again. Returns how many there were. */
EXPORT u64 ram_drain(struct ram *m, u32 *out) {
    u64 n = m->dirty_count;
    for (u64 i = 0; i < n; i++) {
        out[i] = m->dirty_list[i];
        m->dirty[m->dirty_list[i]] = 0;
    }
    m->dirty_count = 0;
    if (n)
        for (u64 i = 0; i < m->engines; i++) engine_tlb_flush(m->engine[i]);
    return n;
}

/* Drop every engine's code translated from a page. A block that is running then, or about to, may be one
 * of those dropped and still be linked to others: the next block is looked up anew. */
void code_invalidate(struct ram *m, u64 page) {
    u64 addr = ram_addr_of_page(m, page);
    m->code[page] = 0;
    for (u64 i = 0; i < m->engines; i++) {
        real.tb_invalidate_phys_page_range(m->engine[i]->uc, addr, addr + PAGE_SIZE);
        m->engine[i]->stale = true;
        m->engine[i]->limit = 0;
    }
}

/* The host or a device wrote `size` bytes at RAM offset `off`. */
EXPORT void ram_written(struct ram *m, u64 off, u64 size) {
    if (!size) return;
    for (u64 page = off >> 12; page <= (off + size - 1) >> 12; page++) {
        ram_dirty(m, page);
        if (m->code[page]) code_invalidate(m, page);
    }
}

/* Pages were replaced by a restore: not "written", but code from them is gone. */
EXPORT void ram_replaced(struct ram *m, const u32 *pages, u64 count) {
    for (u64 i = 0; i < count; i++)
        if (m->code[pages[i]]) code_invalidate(m, pages[i]);
}

/* Copy pages in or out of a packed array (4096 bytes each). */
EXPORT void ram_gather(const struct ram *m, const u32 *pages, u64 count, u8 *out) {
    for (u64 i = 0; i < count; i++) memcpy(out + i * PAGE_SIZE, m->host + (u64)pages[i] * PAGE_SIZE, PAGE_SIZE);
}
EXPORT void ram_scatter(struct ram *m, const u32 *pages, u64 count, const u8 *const *in) {
    for (u64 i = 0; i < count; i++) {
        u8 *to = m->host + (u64)pages[i] * PAGE_SIZE;
        if (in[i]) memcpy(to, in[i], PAGE_SIZE);
        else memset(to, 0, PAGE_SIZE);
    }
    ram_replaced(m, pages, count);
}

/* Code was translated from this page: every store to it must be seen, in every engine. */
void code_translated(struct core *c, u64 addr) {
    struct ram *m = c->ram;
    u64 page = page_of_ram_addr(m, addr);
    if (page == NEVER || m->code[page]) return;
    m->code[page] = 1;
    for (u64 i = 0; i < m->engines; i++)
        real.tlb_reset_dirty(m->engine[i]->cpu, (u64)m->host + (page << 12), PAGE_SIZE);
}

/* An engine dropped all its translations. Others may still have some, so marks stay, except when
 * it is the only one. */
void forget_code(struct core *c) {
    struct ram *m = c->ram;
    if (m->engines == 1) memset(m->code, 0, m->size >> 12);
}

/* ---- interposed: stores ---------------------------------------------------------------------- */

/* Leave the running block before a store that would change it, so that the store runs alone and
 * what follows is translated anew. Returns when the store is already the last instruction. */
static void leave_block_before_store(struct core *c, u64 page, uintptr_t ra) {
    if (!c->tb_insns || !ra) return;
    u64 addr = ram_addr_of_page(c->ram, page);
    if (c->tb->page_addr[0] != addr && c->tb->page_addr[1] != addr) return;
    leave_block(c, ra);
}

EXPORT void tb_invalidate_phys_page_fast_x86_64(void *uc, void *pages, u64 start, int len, uintptr_t ra) {
    struct core *c = core_of_cpu(AT(void *, uc, UC_CPU));
    u64 page = c ? page_of_ram_addr(c->ram, start) : NEVER;
    if (page == NEVER) {
        real.tb_invalidate_phys_page_fast(uc, pages, start, len, ra);
        return;
    }
    u64 store = c->store_addr;
    c->store_addr = NEVER;
    c->last_page = page;
    c->last_ra = ra;
    ram_dirty(c->ram, page);
    if (!c->ram->code[page]) {
        /* The mapping is executable but no code was translated from the page: let stores run. */
        if (store != NEVER && !((store ^ start) & 0xfff)) real.tlb_set_dirty(c->cpu, store);
        return;
    }
    c->code_writes++;
    for (u64 i = 0; i < c->ram->engines; i++)
        if (c->ram->engine[i] != c)
            real.tb_invalidate_phys_page_range(c->ram->engine[i]->uc, start & PAGE_MASK,
                                               (start & PAGE_MASK) + PAGE_SIZE);
    real.tb_invalidate_phys_page_fast(uc, pages, start, len, ra);
}

/* Called after the above when the mapping is not executable: from now on its stores are not seen,
 * so all code of the page must go. */
EXPORT void tlb_set_dirty_x86_64(void *cpu, u64 vaddr) {
    struct core *c = core_of_cpu(cpu);
    if (c && c->last_page != NEVER && c->ram->code[c->last_page]) {
        leave_block_before_store(c, c->last_page, c->last_ra);
        code_invalidate(c->ram, c->last_page);
    }
    real.tlb_set_dirty(cpu, vaddr);
}

#define STORE(name, type)                                                                          \
    EXPORT void name##_x86_64(void *env, u64 addr, type value, u32 oi, uintptr_t ra) {             \
        struct core *c = core_of_env(env);                                                         \
        if (!c) {                                                                                  \
            real.name(env, addr, value, oi, ra);                                                   \
            return;                                                                                \
        }                                                                                          \
        c->store_addr = addr;                                                                      \
        real.name(env, addr, value, oi, ra);                                                       \
        c->store_addr = NEVER;                                                                     \
    }
STORE(helper_ret_stb_mmu, u8)
STORE(helper_le_stw_mmu, u16)
STORE(helper_le_stl_mmu, u32)
STORE(helper_le_stq_mmu, u64)

/* Stores that bypass the TLB: accessed and dirty bits, the VMCB. */
#define PHYS(name, type)                                                                           \
    EXPORT void name##_x86_64(void *cpu, u64 phys, type value) {                                   \
        struct core *c = core_of_cpu(cpu);                                                         \
        real.name(cpu, phys, value);                                                               \
        u64 off = c ? ram_offset(c->ram, phys) : NEVER;                                            \
        if (off != NEVER) ram_written(c->ram, off, sizeof value);                                  \
    }
PHYS(x86_stb_phys, u8)
PHYS(x86_stw_phys, u32)
PHYS(x86_stl_phys, u32)
PHYS(x86_stl_phys_notdirty, u32)
PHYS(x86_stq_phys, u64)

/* ---- data breakpoints ---------------------------------------------------------------------------
 * The engine knows how to notice accesses to a watched page but not which are watched, nor how to
 * raise the debug exception. */

enum { WATCH_READ = 1, WATCH_WRITE = 2 };

/* Debug registers (as bits) whose breakpoint covers a byte of [addr, addr + len) for this access. */
static u64 debug_hits(struct core *c, u64 addr, u64 len, int access) {
    u64 dr7 = ENV_AT(c, u64, ENV_DR + 56), hit = 0;
    for (int i = 0; i < 4; i++) {
        u64 kind = dr7 >> (16 + 4 * i) & 3, size = (dr7 >> (18 + 4 * i) & 3) + 1;
        if (!(dr7 >> (2 * i) & 3) || !(kind & 1) || (kind == 1 && !(access & WATCH_WRITE))) continue;
        if (size == 3) size = 8;
        u64 at = ENV_AT(c, u64, ENV_DR + 8 * i) & ~(size - 1);
        if (addr < at + size && at < addr + len) hit |= 1UL << i;
    }
    return hit;
}

EXPORT int cpu_watchpoint_address_matches_x86_64(void *cpu, u64 addr, u64 len) {
    struct core *c = core_of_cpu(cpu);
    if (!c || !(ENV_AT(c, u64, ENV_DR + 56) & 0xff)) return 0;
    return (debug_hits(c, addr, len, WATCH_WRITE) ? WATCH_WRITE : 0) |
           (debug_hits(c, addr, len, WATCH_READ) ? WATCH_READ : 0);
}

/* The set of breakpoints changed: every translation must ask again. */
EXPORT int cpu_watchpoint_insert_x86_64(void *cpu, u64 addr, u64 len, int flags, void **out) {
    struct core *c = core_of_cpu(cpu);
    (void)addr, (void)len, (void)flags, (void)out;
    if (c) engine_tlb_flush(c);
    return 0;
}
EXPORT void cpu_watchpoint_remove_by_ref_x86_64(void *cpu, void *watchpoint) {
    struct core *c = core_of_cpu(cpu);
    (void)watchpoint;
    if (c) engine_tlb_flush(c);
}

EXPORT void cpu_check_watchpoint_x86_64(void *cpu, u64 addr, u64 len, u32 attrs, int flags, uintptr_t ra) {
    struct core *c = core_of_cpu(cpu);
    if (!c) {
        real.cpu_check_watchpoint(cpu, addr, len, attrs, flags, ra);
        return;
    }
    u64 hit = debug_hits(c, addr, len, flags);
    if (!hit) return;
    leave_block(c, ra);
    c->data_breakpoints |= hit;
    relimit(c);
}

/* ---- interposed: translation ------------------------------------------------------------------ */

EXPORT struct tb *tb_gen_code_x86_64(void *cpu, u64 pc, u64 cs_base, u32 flags, int cflags) {
    struct core *c = core_of_cpu(cpu);
    struct tb *tb = real.tb_gen_code(cpu, pc, cs_base, flags, cflags);
    if (c) {
        c->translations++;
        code_translated(c, tb->page_addr[0]);
        if (tb->page_addr[1] != NEVER) code_translated(c, tb->page_addr[1]);
    }
    return tb;
}

EXPORT void tb_flush_x86_64(void *cpu) {
    struct core *c = core_of_cpu(cpu);
    if (c) {
        c->jit_flushes++;
        memset(c->blocks_seen, 0, 65536 * sizeof *c->blocks_seen);
        forget_code(c);
    }
    real.tb_flush(cpu);
}

/* Made redundant by code_translated, and slow: it scans the whole TLB at every translation. */
EXPORT void tlb_reset_dirty_by_vaddr_x86_64(void *cpu, u64 addr, u64 size) {
    if (!core_of_cpu(cpu)) real.tlb_reset_dirty_by_vaddr(cpu, addr, size);
}

/* The engine asks for the region of a physical address on every slow access: answer in constant
 * time for RAM. */
void *memory_mapping(void *uc, u64 addr) {
    struct core *c = core_of_cpu(AT(void *, uc, UC_CPU));
    u64 offset = c ? ram_offset(c->ram, addr) : NEVER;
    if (offset != NEVER)
        for (int i = 0; i < MAX_BLOCKS; i++)
            if (offset - c->ram->block[i].offset < c->ram->block[i].size) return c->region[i];
    return real.find_memory_mapping(uc, addr);
}

/* After RAM is mapped, in the order of `phys`: learn how the engine numbers it. Returns 0, or
 * nonzero if that is not one run of addresses per block, or not as in the memory's other engines. */
EXPORT int core_regions(struct core *c, const u64 *phys, const u64 *sizes, int count) {
    struct ram *m = c->ram;
    for (int i = 0; i < count; i++) {
        struct ram_block block = {0, ram_offset(m, phys[i]), sizes[i]};
        void *region = real.find_memory_mapping(c->uc, phys[i]);
        if (!region || block.offset == NEVER) return 1;
        block.ram_addr = real.memory_region_get_ram_addr(region);
        for (int k = 0; k < i; k++) /* Unicorn gives overlapping numbers for some orders of mapping */
            if (block.ram_addr < m->block[k].ram_addr + m->block[k].size &&
                m->block[k].ram_addr < block.ram_addr + block.size)
                return 2;
        if (m->engines > 1 && m->block[i].ram_addr != block.ram_addr) return 3;
        m->block[i] = block;
        c->region[i] = region;
    }
    return 0;
}
