//go:build ignore

// Static fails unless the ELF file named by its argument is fully static: no
// interpreter, no dynamic section. Such a binary runs from an empty container.
package main

import (
	"debug/elf"
	"fmt"
	"os"
)

func main() {
	f, err := elf.Open(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			fmt.Fprintf(os.Stderr, "%s has a %v segment: it is not static\n", os.Args[1], p.Type)
			os.Exit(1)
		}
	}
	fmt.Printf("%s is static\n", os.Args[1])
}
