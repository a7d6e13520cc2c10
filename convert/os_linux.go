package convert

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve takes disk space for the first size bytes of f, so that a full disk is found
// before the work. File systems that cannot do it get a file of the right length.
func reserve(f *os.File, size int64) error {
	if size > 0 {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return err
		}
	}
	return f.Truncate(size)
}

// exchange swaps two directory entries in one step.
func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}
