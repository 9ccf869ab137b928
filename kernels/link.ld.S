/* Linker script, run through the C preprocessor with the release's header. The image is one stretch of memory that
 * begins with the entries of the boot protocol; it is linked at KERNEL_BASE and loaded at RELEASE_PREF_ADDRESS, or at
 * any other 2 MiB boundary. .noinit is not cleared at start. */
#define __ASSEMBLER__
#include RELEASE_HEADER
PHDRS {
  text PT_LOAD FLAGS(5);
  rodata PT_LOAD FLAGS(4);
  data PT_LOAD FLAGS(6);
  note PT_NOTE FLAGS(4);
}
SECTIONS {
  . = KERNEL_BASE;
  _text = .;
  .text : AT(RELEASE_PREF_ADDRESS) {
    *(.head.text)
    *(.text .text.*)
    . = ALIGN(4096);
  } :text
  _etext = .;
  _rodata = .;
  .rodata : AT(RELEASE_PREF_ADDRESS + ADDR(.rodata) - KERNEL_BASE) {
    *(.rodata .rodata.*)
    . = ALIGN(8);
    __param_start = .;
    KEEP(*(.param))
    __param_end = .;
    __initcall_start = .;
    KEEP(*(.initcall.0))
    KEEP(*(.initcall.1))
    KEEP(*(.initcall.2))
    KEEP(*(.initcall.3))
    KEEP(*(.initcall.4))
    KEEP(*(.initcall.5))
    KEEP(*(.initcall.6))
    KEEP(*(.initcall.7))
    __initcall_end = .;
    __syscalls_start = .;
    KEEP(*(.syscalls))
    __syscalls_end = .;
    __ex_table_start = .;
    KEEP(*(.ex_table))
    __ex_table_end = .;
  } :rodata
  .note.Xen : AT(RELEASE_PREF_ADDRESS + ADDR(.note.Xen) - KERNEL_BASE) {
    KEEP(*(.note.Xen))
    . = ALIGN(4096);
  } :rodata :note
  _erodata = .;
  _data = .;
  .data : AT(RELEASE_PREF_ADDRESS + ADDR(.data) - KERNEL_BASE) {
    *(.data .data.*)
    . = ALIGN(16);
  } :data
  _edata = .;
  .bss (NOLOAD) : AT(RELEASE_PREF_ADDRESS + ADDR(.bss) - KERNEL_BASE) ALIGN(4096) {
    __bss_start = .;
    *(.bss .bss.*) *(COMMON)
    . = ALIGN(4096);
    __bss_end = .;
    *(.noinit)
    . = ALIGN(4096);
  } :data
  _end = .;
  _stapsdt_base = 0;
  .note.stapsdt 0 : { *(.note.stapsdt) }
  /DISCARD/ : { *(.comment) *(.eh_frame*) *(.note.gnu*) *(.note.GNU*) *(.gnu*) }
}
ASSERT(_end - _text <= 0x2000000, "the image is larger than the early page tables map")
