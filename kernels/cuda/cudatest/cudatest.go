// Package cudatest lets tests use CUDA on machines without a GPU: it builds the fake
// driver of kernels/cuda/driver/fake, with the emulated kernels of kernels/cuda/emu,
// and loads it into the test process.
//
// A fake is configured when it is loaded. Open therefore loads a private copy of the
// library for every test, with memory, devices, counters and failures of its own, so
// that behaviour needs no child process. Tests of whole programs pass Library to the
// program in NF4CONV_CUDA_LIBRARY, with the settings in its environment.
//
// The library is built once for all packages and kept in the user's cache directory
// under a hash of its sources, compiler and flags. Without a C++ compiler the test is
// skipped; it fails when NF4CONV_TEST_REQUIRE has "emulator" in its list.
package cudatest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nf4conv/nf4conv/kernels/cuda/driver"
)

// Image is a module that the fake driver loads. It has every kernel in it.
var Image = []byte("// for the fake driver\n.version 7.0\n.target sm_80\n.address_size 64\n")

// Required reports whether NF4CONV_TEST_REQUIRE lists tier: then a test that cannot
// run on it fails.
func Required(tier string) bool {
	return slices.Contains(strings.Split(os.Getenv("NF4CONV_TEST_REQUIRE"), ","), tier)
}

// NotRun skips the test for want of a tier, or fails it where the tier is required.
func NotRun(tb testing.TB, tier, format string, args ...any) {
	tb.Helper()
	why := fmt.Sprintf("NOT RUN (%s): %s", tier, fmt.Sprintf(format, args...))
	if Required(tier) {
		tb.Fatal(why + "; NF4CONV_TEST_REQUIRE demands it")
	}
	tb.Skip(why)
}

// Library returns the path of the fake driver, which it builds when needed. Compiler
// flags beyond the usual ones make another library.
//
// NF4CONV_TEST_SANITIZE is a list for gcc's -fsanitize, such as "address,undefined"; the
// run time of the sanitizer must be preloaded then (driver/fake/README.md has the command).
func Library(tb testing.TB, flags ...string) string {
	tb.Helper()
	if s := os.Getenv("NF4CONV_TEST_SANITIZE"); s != "" {
		flags = append(slices.Clip(flags), "-fsanitize="+s, "-fno-omit-frame-pointer")
	}
	if runtime.GOOS != "linux" {
		NotRun(tb, "emulator", "the fake driver is for Linux")
	}
	b := buildOf(strings.Join(flags, " "))
	b.once.Do(func() { b.path, b.err = build(flags) })
	if errors.Is(b.err, errNoCompiler) {
		NotRun(tb, "emulator", "%v", b.err)
	}
	if b.err != nil {
		tb.Fatal(b.err)
	}
	return b.path
}

// Copy returns a fresh copy of the library of the given flags: a file of its own is a
// library of its own to the loader.
func Copy(tb testing.TB, flags ...string) string {
	tb.Helper()
	raw, err := os.ReadFile(Library(tb, flags...))
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(tb.TempDir(), "libcuda.so.1")
	if err := os.WriteFile(path, raw, 0o755); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Env is the environment of a child process that uses the fake driver with these
// settings: that of the test, less other settings.
func Env(tb testing.TB, settings ...string) []string {
	tb.Helper()
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "FAKECUDA_") })
	env = append(env, driver.LibraryVariable+"="+Library(tb))
	for _, s := range settings {
		checkSetting(tb, s)
		env = append(env, s)
	}
	return env
}

// checkSetting refuses what the fake driver would not read.
func checkSetting(tb testing.TB, s string) {
	tb.Helper()
	name, _, ok := strings.Cut(s, "=")
	switch strings.TrimPrefix(name, "FAKECUDA_") {
	case "DEVICES", "MEMORY", "DRIVER_VERSION", "CC", "STREAMS", "INIT", "FAIL", "DELAY":
	default:
		ok = false
	}
	if !ok || !strings.HasPrefix(name, "FAKECUDA_") {
		tb.Fatalf("%q is no setting of the fake driver", s)
	}
}

// Set points NF4CONV_CUDA_LIBRARY to the library and sets the variables of the fake to
// the settings, all others to their defaults, until the test ends.
func Set(tb testing.TB, path string, settings ...string) {
	tb.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "FAKECUDA_") {
			tb.Setenv(name, "")
		}
	}
	for _, s := range settings {
		checkSetting(tb, s)
		name, value, _ := strings.Cut(s, "=")
		tb.Setenv(name, value)
	}
	tb.Setenv(driver.LibraryVariable, path)
}

type buildResult struct {
	once sync.Once
	path string
	err  error
}

var builds sync.Map // flags to *buildResult

func buildOf(flags string) *buildResult {
	b, _ := builds.LoadOrStore(flags, new(buildResult))
	return b.(*buildResult)
}

var errNoCompiler = errors.New("no C and C++ compiler (gcc and g++, or CC and CXX)")

var (
	common = []string{"-O2", "-g", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off"}
	// The soname is not that of the real driver: the loader would answer for it with a fake.
	linker = []string{"-shared", "-pthread", "-Wl,-Bsymbolic", "-Wl,-soname,libfakecuda.so"}
)

// source is one file to compile.
type source struct {
	path string
	cxx  bool
}

func build(flags []string) (string, error) {
	cc, cxx := tool("CC", "gcc"), tool("CXX", "g++")
	if cc == "" || cxx == "" {
		return "", errNoCompiler
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cuda := filepath.Join(root, "kernels", "cuda")
	sources, hashed, err := list(cuda)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, compiler := range []string{cc, cxx} {
		v, err := exec.Command(compiler, "--version").Output()
		if err != nil {
			return "", fmt.Errorf("%s --version: %w", compiler, err)
		}
		h.Write(v)
	}
	fmt.Fprintf(h, "%q %q %q %s\n", common, linker, flags, cuda)
	for _, path := range hashed {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", filepath.Base(path), len(b))
		h.Write(b)
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	out := filepath.Join(cache, fmt.Sprintf("libfakecuda-%x.so", h.Sum(nil)[:12]))
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	// Several processes may build at once: each in its own place, and the rename decides.
	tmp, err := os.MkdirTemp(cache, "building-*")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	var objects []string
	for i, s := range sources {
		o := filepath.Join(tmp, fmt.Sprintf("%d.o", i))
		compiler, args := cc, []string{"-std=gnu17", "-Wall", "-Wextra"}
		if s.cxx {
			// Unique symbols would be shared by the copies that Open loads.
			compiler, args = cxx, []string{"-std=c++17", "-DNF4_EMU", "-fno-gnu-unique"}
		}
		args = slices.Concat(args, common, flags, []string{"-c", s.path, "-o", o})
		if err := run(compiler, args); err != nil {
			return "", err
		}
		objects = append(objects, o)
	}
	lib := filepath.Join(tmp, "lib.so")
	if err := run(cxx, slices.Concat(linker, flags, objects, []string{"-o", lib})); err != nil {
		return "", err
	}
	return out, os.Rename(lib, out)
}

func run(compiler string, args []string) error {
	if out, err := exec.Command(compiler, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("building the fake driver: %s %s: %w\n%s", compiler, strings.Join(args, " "), err, out)
	}
	return nil
}

// tool is the compiler that the variable names, or the usual one; "" when there is none.
func tool(variable, usual string) string {
	name := os.Getenv(variable)
	if name == "" {
		name = usual
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

// list finds what to compile (the fake driver, the emulated kernels) and everything
// that the result depends on.
func list(cuda string) (sources []source, hashed []string, err error) {
	for _, dir := range []string{"driver/fake", "emu", "src"} {
		dir = filepath.Join(cuda, filepath.FromSlash(dir))
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			path, ext := filepath.Join(dir, e.Name()), filepath.Ext(e.Name())
			switch ext {
			case ".c", ".cpp":
				if !strings.Contains(e.Name(), "_test.") {
					sources = append(sources, source{path, ext == ".cpp"})
				}
				hashed = append(hashed, path)
			case ".h", ".cu", ".cuh":
				hashed = append(hashed, path)
			}
		}
	}
	if len(sources) == 0 {
		return nil, nil, fmt.Errorf("no sources of the fake driver under %s", cuda)
	}
	return sources, hashed, nil
}

// moduleRoot is the directory of go.mod above the test's working directory.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod in %s or above it", start)
		}
	}
}

func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	dir := filepath.Join(base, "nf4conv-test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		dir = filepath.Join(os.TempDir(), "nf4conv-test")
		return dir, os.MkdirAll(dir, 0o755)
	}
	return dir, nil
}
