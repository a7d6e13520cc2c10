package safetensors

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// File is an open safetensors file whose header was checked. It may be read from many
// goroutines.
type File struct {
	path   string
	f      *os.File
	stat   fs.FileInfo
	header *Header
	byName map[string]int
}

// Open opens a file and reads its header. Errors name the file; they are of class
// fault.Input for what the format forbids and for anything but a regular file.
func Open(path string) (*File, error) {
	// Looking before opening: opening a FIFO would wait for a writer.
	stat, err := os.Stat(path)
	if err != nil {
		return nil, openError(path, err)
	}
	if !stat.Mode().IsRegular() {
		return nil, fault.Inputf("reading %q: expected a regular file, found %v", path, stat.Mode().Type())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, openError(path, err)
	}
	if stat, err = f.Stat(); err != nil {
		return nil, errors.Join(openError(path, err), f.Close())
	}
	h, err := ReadHeader(f, stat.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading %q: %w", path, err), f.Close())
	}
	o := &File{path: path, f: f, stat: stat, header: h, byName: make(map[string]int, len(h.Tensors))}
	for i := range h.Tensors {
		o.byName[h.Tensors[i].Name] = i
	}
	return o, nil
}

// openError classifies: a missing file or a loop of links will not mend itself.
func openError(path string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, fs.ErrPermission) {
		return fault.IOf("reading %q: %w", path, err)
	}
	return fault.Inputf("reading %q: %w", path, err)
}

// Path is the name under which the file was opened.
func (f *File) Path() string { return f.path }

// Header is the file's header, which must not be changed.
func (f *File) Header() *Header { return f.header }

// Stat is what the file looked like when it was opened.
func (f *File) Stat() fs.FileInfo { return f.stat }

// Tensor finds an entry by name.
func (f *File) Tensor(name string) (*Tensor, bool) {
	i, ok := f.byName[name]
	if !ok {
		return nil, false
	}
	return &f.header.Tensors[i], true
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// ReadTensorAt fills p with the bytes of t that start at its byte off. A file that has
// become shorter is an error of class fault.Input.
func (f *File) ReadTensorAt(p []byte, t *Tensor, off int64) error {
	if off < 0 || off+int64(len(p)) > t.Bytes() {
		return fmt.Errorf("safetensors: internal error: reading %d bytes at %d of tensor %q, which has %d", len(p), off, t.Name, t.Bytes())
	}
	n, err := f.f.ReadAt(p, f.header.DataStart+t.Begin+off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fault.WithHint(
			fault.Inputf("reading %q: tensor %q: the file ends %d bytes into a read of %d at byte %d of the tensor", f.path, t.Name, n, len(p), off),
			"the file was cut short while it was read")
	}
	return fault.IOf("reading %q: tensor %q: %w", f.path, t.Name, err)
}
