// Command pack compresses a file for embedding: the same bytes each time. With -d it
// undoes that.
package main

import (
	"fmt"
	"os"

	"github.com/klauspost/compress/zstd"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	undo := len(args) == 3 && args[0] == "-d"
	if undo {
		args = args[1:]
	}
	if len(args) != 2 {
		return fmt.Errorf("expected an input and an output file, got %d arguments", len(args))
	}
	raw, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	if undo {
		r, err := zstd.NewReader(nil)
		if err != nil {
			return err
		}
		defer r.Close()
		if raw, err = r.DecodeAll(raw, nil); err != nil {
			return err
		}
		return os.WriteFile(args[1], raw, 0o644)
	}
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	return os.WriteFile(args[1], w.EncodeAll(raw, nil), 0o644)
}
