//go:build !linux

package convert

import (
	"errors"
	"os"
)

func reserve(f *os.File, size int64) error { return f.Truncate(size) }

func exchange(string, string) error { return errors.ErrUnsupported }
