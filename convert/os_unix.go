//go:build unix

package convert

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// lockFile takes an exclusive lock that ends with the process.
func lockFile(f *os.File) error {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// isLocked tells an error of lockFile that means that another process holds the lock.
func isLocked(err error) bool { return errors.Is(err, unix.EWOULDBLOCK) }

// mayWrite returns an error when nothing can be made in dir.
func mayWrite(dir string) error {
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &os.PathError{Op: "writing to", Path: dir, Err: err}
	}
	return nil
}

// freeSpace is the number of bytes that may still be written to the file system of dir.
func freeSpace(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * int64(s.Bsize), nil //nolint:unconvert // the types differ between systems
}

// allocated is the number of bytes of a file that take space already.
func allocated(fi os.FileInfo) int64 {
	if s, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int64(s.Blocks) * 512 //nolint:unconvert // the types differ between systems
	}
	return fi.Size()
}

// fileID identifies a file or directory whatever its name.
type fileID struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// identify returns the zero fileID for what does not exist.
func identify(path string) (fileID, error) {
	var s unix.Stat_t
	err := unix.Stat(path, &s)
	if errors.Is(err, unix.ENOENT) {
		return fileID{}, nil
	}
	if err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{Dev: uint64(s.Dev), Ino: s.Ino}, nil //nolint:unconvert // the types differ between systems
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
