package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// Names of what files can do.
const (
	fileWrite = "write to the page cache, all threads"
	fileSync  = "write and sync"
	fileRead  = "read from the page cache, all threads"
)

// fileBytes is the size of the file; tests make it smaller.
var fileBytes int64 = 1 << 30

// Disk measures a file in dir, as conversions use it: in pieces, from several threads.
func Disk(ctx context.Context, dir string, threads int) (*Report, error) {
	r := &Report{Schema: Schema, Device: "files in " + dir, Threads: threads}
	f, err := os.CreateTemp(dir, "nf4conv-bench-*")
	if err != nil {
		return nil, fault.IOf("measuring %q: %w", dir, err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // there is nobody left to tell
	err = disk(ctx, r, f, threads)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fault.IOf("measuring %q: %w", dir, err)
	}
	return r, nil
}

func disk(ctx context.Context, r *Report, f *os.File, threads int) error {
	var written, synced, read []time.Duration
	for range 3 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f.Truncate(0); err != nil {
			return err
		}
		began := time.Now()
		if err := pieces(threads, f.WriteAt); err != nil {
			return err
		}
		written = append(written, time.Since(began))
		if err := f.Sync(); err != nil {
			return err
		}
		synced = append(synced, time.Since(began))
		began = time.Now()
		if err := pieces(threads, f.ReadAt); err != nil {
			return err
		}
		read = append(read, time.Since(began))
	}
	r.add(fileWrite, fileBytes, written, "")
	r.add(fileSync, fileBytes, synced, "")
	r.add(fileRead, fileBytes, read, "")
	return nil
}

// pieces does the whole file in pieces of a mebibyte on several threads.
func pieces(threads int, do func(p []byte, off int64) (int, error)) error {
	const piece = 1 << 20
	var wg sync.WaitGroup
	errs := make([]error, threads)
	for k := range threads {
		wg.Go(func() {
			p := make([]byte, piece)
			for off := int64(k) * piece; off < fileBytes && errs[k] == nil; off += int64(threads) * piece {
				if n, err := do(p, off); err != nil && !errors.Is(err, io.EOF) || n < piece {
					errs[k] = errors.Join(err, fmt.Errorf("%d of %d bytes at %d", n, piece, off))
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
