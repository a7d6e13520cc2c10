package convert

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// lockFile takes an exclusive lock that ends with the process.
func lockFile(f *os.File) error {
	var o windows.Overlapped
	o.OffsetHigh = 1 << 30 // beyond the contents, which stay readable
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &o)
}

// isLocked tells an error of lockFile that means that another process holds the lock.
func isLocked(err error) bool { return errors.Is(err, windows.ERROR_LOCK_VIOLATION) }

// mayWrite has no answer here short of making a file.
func mayWrite(string) error { return nil }

// freeSpace is the number of bytes that may still be written to the file system of dir.
func freeSpace(dir string) (int64, error) {
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, nil, nil); err != nil {
		return 0, &os.PathError{Op: "GetDiskFreeSpaceEx", Path: dir, Err: err}
	}
	return int64(min(free, 1<<62)), nil
}

// allocated is the number of bytes of a file that take space already.
func allocated(fi os.FileInfo) int64 { return fi.Size() }

// fileID identifies a file or directory whatever its name.
type fileID struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// identify returns the zero fileID for what does not exist.
func identify(path string) (fileID, error) {
	f, err := openAny(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fileID{}, nil
	}
	if err != nil {
		return fileID{}, err
	}
	defer windows.CloseHandle(f) //nolint:errcheck // opened for its identity only
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(f, &info); err != nil {
		return fileID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{Dev: uint64(info.VolumeSerialNumber), Ino: uint64(info.FileIndexHigh)<<32 | uint64(info.FileIndexLow)}, nil
}

// openAny opens a file or a directory without rights to its contents.
func openAny(path string) (windows.Handle, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, err
	}
	h, err := windows.CreateFile(name, 0, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil,
		windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return h, nil
}

// syncDir has nothing to do: Windows has no handle to sync for a directory.
func syncDir(string) error { return nil }
