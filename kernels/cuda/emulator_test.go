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

// builds are the ways the kernels are compiled: as for the newest architectures, under
// the sanitizers, and as for the oldest.
var builds = []struct {
	name  string
	flags []string
}{
	{"sanitized", []string{"-DNF4_ARCH=900", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}},
	{"sm_75", []string{"-DNF4_ARCH=750", "-O2"}},
}

var compiled = map[string]*struct {
	once sync.Once
	path string
	err  error
}{"sanitized": {}, "sm_75": {}}

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
func eachEmulator(t *testing.T, f func(t *testing.T, e *emulator)) {
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

// launch runs a kernel. A []byte is a buffer, which is updated; anything else is a value.
func (e *emulator) launch(t *testing.T, order uint32, l Launch, args ...any) {
	t.Helper()
	e.runs++
	word := binary.LittleEndian.AppendUint32
	req := append(word(nil, uint32(len(l.Name))), l.Name...)
	for _, v := range []uint32{l.Grid, l.Block, l.Shared, order, uint32(len(args))} {
		req = word(req, v)
	}
	for _, a := range args {
		kind := uint32(0)
		if _, ok := a.([]byte); ok {
			kind = 1
		}
		size := binary.Size(a)
		if size < 0 {
			t.Fatalf("argument %v has no fixed size", a)
		}
		var err error
		if req, err = binary.Append(word(word(req, kind), uint32(size)), binary.LittleEndian, a); err != nil {
			t.Fatalf("argument %v: %v", a, err)
		}
	}
	_, err := e.in.Write(req)
	for _, a := range args {
		if b, ok := a.([]byte); ok && err == nil {
			_, err = io.ReadFull(e.out, b)
		}
	}
	if err != nil {
		stopped := e.stop()
		t.Fatalf("%s, grid %d, block %d, order %d: %v\n%s", l.Name, l.Grid, l.Block, order, stopped, e.stderr)
	}
}
