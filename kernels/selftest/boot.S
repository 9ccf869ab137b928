/* Entries of the self-test guest, and the assembly that C cannot express: trap stubs, try_call, ring 3.
 *
 * Two ways in, one contract: %ebx is the physical address of the PVH start info.
 *   pvh_start32  32-bit protected mode without paging, named by the PVH note (QEMU -kernel, our loader)
 *   start64      ELF e_entry: long mode, any page tables that map the image 1:1, interrupts off
 */
.section .note.Xen, "a", @note
.align 4
.long 4
.long 4
.long 18                          /* XEN_ELFNOTE_PHYS32_ENTRY */
.asciz "Xen"
.long pvh_start32

.section .text.boot, "ax", @progbits
.code32
.globl pvh_start32
pvh_start32:
  cli
  cld
  /* map 4 GiB 1:1 with 2 MiB pages; paging.c replaces this by tables with permissions */
  movl $boot_pdpt + 3, boot_pml4
  movl $boot_pd + 3, %eax
  movl $boot_pdpt, %edi
  movl $4, %ecx
1:
  movl %eax, (%edi)
  addl $4096, %eax
  addl $8, %edi
  loop 1b
  movl $0x83, %eax
  movl $boot_pd, %edi
  movl $2048, %ecx
2:
  movl %eax, (%edi)
  addl $0x200000, %eax
  addl $8, %edi
  loop 2b
  movl $boot_pml4, %eax
  movl %eax, %cr3
  movl $0x20, %eax                /* PAE */
  movl %eax, %cr4
  movl $0xC0000080, %ecx          /* EFER.LME */
  rdmsr
  orl $0x100, %eax
  wrmsr
  movl $0x80000011, %eax          /* PG ET PE */
  movl %eax, %cr0
  lgdt boot_gdtr
  ljmp $8, $start64

.align 8
boot_gdt:
  .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdtr:
  .word 23
  .long boot_gdt

.code64
.globl start64
start64:
  cli
  cld
  movl $boot_stack_top, %esp
  xorl %ebp, %ebp
  movl %ebx, %edi
  call kmain
1:
  cli
  hlt
  jmp 1b

.text
/* void load_gdt(const void *pseudo_descriptor, uint64_t tss_selector) */
.globl load_gdt
load_gdt:
  lgdt (%rdi)
  pushq $8
  leaq 1f(%rip), %rax
  pushq %rax
  lretq
1:
  movl $0x10, %eax
  movl %eax, %ss
  xorl %eax, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %fs
  movl %eax, %gs
  ltr %si
  ret

/* One 16-byte stub for each of the 256 vectors. */
.altmacro
.macro STUB n
.align 16
 .if ((\n == 8) || ((\n >= 10) && (\n <= 14)) || (\n == 17) || (\n == 21) || (\n == 29) || (\n == 30))
 .else
  pushq $0
 .endif
  pushq $\n
  jmp trap_entry
.endm
.align 16
.globl trap_stubs
trap_stubs:
.set i, 0
.rept 256
  STUB %i
  .set i, i + 1
.endr

/* The processor aligned %rsp to 16 and pushed five words, the stub two, this fifteen: aligned again. */
trap_entry:
  pushq %rax
  pushq %rbx
  pushq %rcx
  pushq %rdx
  pushq %rsi
  pushq %rdi
  pushq %rbp
  pushq %r8
  pushq %r9
  pushq %r10
  pushq %r11
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  cld
  movq %rsp, %rdi
  call trap
.globl trap_return
trap_return:
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %r11
  popq %r10
  popq %r9
  popq %r8
  popq %rbp
  popq %rdi
  popq %rsi
  popq %rdx
  popq %rcx
  popq %rbx
  popq %rax
  addq $16, %rsp
  iretq

/* uint64_t try_call(void (*f)(void *), void *arg)
 * Calls f(arg). Returns NO_FAULT, or the vector of the trap that ended it: trap() then resumes at
 * try_unwind with %rsp = try_rsp. Nests. */
.globl try_call
try_call:
  pushq %rbx
  pushq %rbp
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  pushq try_rsp(%rip)
  movq %rsp, try_rsp(%rip)
  movq %rdi, %rax
  movq %rsi, %rdi
  call *%rax
  movl $256, %eax
  jmp 1f
.globl try_unwind
try_unwind:                       /* %rax: vector, set by trap() */
1:
  movq try_rsp(%rip), %rsp
  popq try_rsp(%rip)
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbp
  popq %rbx
  ret

/* void iret_to(const struct iret_frame *f): rdi of the target = f->arg, all other registers as they are */
.globl iret_to
iret_to:
  pushq 32(%rdi)                  /* ss */
  pushq 24(%rdi)                  /* rsp */
  pushq 16(%rdi)                  /* rflags */
  pushq 8(%rdi)                   /* cs */
  pushq 0(%rdi)                   /* rip */
  movq 40(%rdi), %rdi
  iretq

.bss
.align 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd: .skip 16384
.globl boot_stack
boot_stack: .skip 65536
.globl boot_stack_top
boot_stack_top:
.globl try_rsp
try_rsp: .skip 8
.section .note.GNU-stack, "", @progbits
