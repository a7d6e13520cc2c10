package cuda

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// An emulator is a process that runs the kernels on the host (emu/test/run.cpp).
type emulator struct {
	name   string
	in     io.Writer
	out    *bufio.Reader
	stderr *bytes.Buffer
	stop   func() error
	runs   int
}

type build struct {
	name  string
	flags []string
}

// builds are the ways the kernels are compiled: as for the newest architectures, under
// the sanitizers, and as for the oldest.
var builds = []build{
	{"sanitized", []string{"-DNF4_ARCH=900", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}},
	{"sm_75", []string{"-DNF4_ARCH=750", "-O2"}},
}

// attentionBuilds are those that the tiles of attention differ in.
var attentionBuilds = []build{builds[0], {"sm_80", []string{"-DNF4_ARCH=800", "-O2"}}, {"sm_89", []string{"-DNF4_ARCH=890", "-DFLASH_SMALL_SHARED", "-O2"}}}

var compiled = map[string]*struct {
	once sync.Once
	path string
	err  error
}{"sanitized": {}, "sm_75": {}, "sm_80": {}, "sm_89": {}}

var scratch string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "nf4conv-emu")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	scratch = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func required(what string) bool {
	return slices.Contains(strings.Split(os.Getenv("NF4CONV_TEST_REQUIRE"), ","), what)
}

// compiler is the C++ compiler; without one the test is skipped, or fails where the
// emulator is required.
func compiler(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("CXX"), "g++", "c++"} {
		if name == "" {
			continue
		}
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if required("emulator") {
		t.Fatal("no C++ compiler (g++), and NF4CONV_TEST_REQUIRE asks for the emulator")
	}
	t.Skip("NOT TESTED: the CUDA kernels, which run under a C++ emulator: no C++ compiler (g++)")
	return ""
}

// eachEmulator runs f for every build, in parallel.
func eachEmulator(t *testing.T, f func(t *testing.T, e *emulator)) { emulators(t, builds, f) }

func emulators(t *testing.T, builds []build, f func(t *testing.T, e *emulator)) {
	cxx := compiler(t)
	for _, b := range builds {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			c := compiled[b.name]
			c.once.Do(func() {
				c.path = filepath.Join(scratch, b.name)
				args := append([]string{"-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"}, b.flags...)
				args = append(args, "-o", c.path, "emu/emu.cpp", "emu/kernels.cpp", "emu/test/run.cpp")
				if out, err := exec.Command(cxx, args...).CombinedOutput(); err != nil {
					c.err = fmt.Errorf("%s %s: %w\n%s", cxx, strings.Join(args, " "), err, out)
				}
			})
			if c.err != nil {
				t.Fatal(c.err)
			}
			e := startEmulator(t, b.name, c.path)
			f(t, e)
			if err := e.stop(); err != nil {
				t.Fatalf("emulator: %v\n%s", err, e.stderr)
			}
			if e.runs == 0 {
				t.Error("no kernel was run")
			}
			t.Logf("%d launches", e.runs)
		})
	}
}

func startEmulator(t *testing.T, name, path string) *emulator {
	t.Helper()
	cmd := exec.Command(path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	e := &emulator{name: name, in: in, out: bufio.NewReaderSize(out, 1<<16), stderr: new(bytes.Buffer)}
	cmd.Stderr = e.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e.stop = sync.OnceValue(func() error { return errors.Join(in.Close(), cmd.Wait()) })
	t.Cleanup(func() { _ = e.stop() })
	return e
}

// record is a structure passed by value, with buffers that pointers in it point to.
type record struct {
	value    any
	pointers []pointer
}

type pointer struct {
	offset uint32
	buffer []byte
}

// launch runs a kernel. A []byte is a buffer, which is updated, as those of a record are;
// anything else is a value.
func (e *emulator) launch(t *testing.T, order uint32, l Launch, args ...any) {
	t.Helper()
	if err := e.start(t, order, l.Name, [3]uint32{l.Grid, 1, 1}, l.Block, l.Shared, args...); err != nil {
		t.Fatal(err)
	}
}

// start runs a kernel; the error is that of the emulator, which has stopped then.
func (e *emulator) start(t *testing.T, order uint32, name string, grid [3]uint32, block, shared uint32, args ...any) error {
	t.Helper()
	e.runs++
	word := binary.LittleEndian.AppendUint32
	req := append(word(nil, uint32(len(name))), name...)
	for _, v := range []uint32{grid[0], grid[1], grid[2], block, shared, order, uint32(len(args))} {
		req = word(req, v)
	}
	var buffers [][]byte
	for _, a := range args {
		kind, value, pointers := uint32(0), a, []pointer(nil)
		switch a := a.(type) {
		case []byte:
			kind, buffers = 1, append(buffers, a)
		case record:
			kind, value, pointers = 2, a.value, a.pointers
		}
		size := binary.Size(value)
		if size < 0 {
			t.Fatalf("argument %v has no fixed size", value)
		}
		var err error
		if req, err = binary.Append(word(word(req, kind), uint32(size)), binary.LittleEndian, value); err != nil {
			t.Fatalf("argument %v: %v", value, err)
		}
		if kind == 2 {
			req = word(req, uint32(len(pointers)))
		}
		for _, p := range pointers {
			req = append(word(word(req, p.offset), uint32(len(p.buffer))), p.buffer...)
			buffers = append(buffers, p.buffer)
		}
	}
	_, err := e.in.Write(req)
	for _, b := range buffers {
		if err == nil {
			_, err = io.ReadFull(e.out, b)
		}
	}
	if err != nil {
		stopped := e.stop()
		return fmt.Errorf("%s, grid %d, block %d, order %d: %w\n%s", name, grid, block, order, stopped, e.stderr)
	}
	return nil
}
