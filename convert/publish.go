package convert

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// publish gives the complete, synced OUT.partial its final name. Every step may be
// cut; the journal, whose last line says that the output is complete, is removed
// last, and the next run calls publish again. replaces identifies what stood at OUT
// before, so that the old and the new directory are never mixed up.
func publish(ps *paths, replaces fileID, j *journal) error {
	err := publishNames(ps, replaces)
	if err != nil {
		return errors.Join(fault.IOf("giving the output its name: %w", err), j.close())
	}
	if err := j.remove(); err != nil {
		return fault.IOf("removing the journal: %w", err)
	}
	return nil
}

func publishNames(ps *paths, replaces fileID) error {
	if ps.file != "" {
		return publishFile(ps)
	}
	partial, err := identify(ps.partial)
	if err != nil {
		return err
	}
	switch {
	case partial == (fileID{}): // renamed already
	case partial == replaces: // exchanged already
		if err := os.RemoveAll(ps.partial); err != nil {
			return err
		}
	case replaces == (fileID{}):
		if err := renameOver(ps.partial, ps.out); err != nil {
			return err
		}
	default:
		if err := swap(ps, replaces); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(ps.old); err != nil {
		return err
	}
	return syncDir(filepath.Dir(ps.out))
}

// renameOver renames a directory to a name that is free or an empty directory.
func renameOver(from, to string) error {
	_ = os.Remove(to) // an empty directory may be in the way; anything else stays and makes Rename fail
	return os.Rename(from, to)
}

// swap puts the new directory in the place of the old one and removes the old.
func swap(ps *paths, replaces fileID) error {
	if err := exchange(ps.partial, ps.out); err == nil {
		if err := syncDir(filepath.Dir(ps.out)); err != nil {
			return err
		}
		return os.RemoveAll(ps.partial)
	}
	// No exchange here: the name is missing for a moment.
	now, err := identify(ps.out)
	if err != nil {
		return err
	}
	if now == replaces {
		if err := os.Rename(ps.out, ps.old); err != nil {
			return err
		}
	}
	return os.Rename(ps.partial, ps.out)
}

// publishFile moves the manifest and then the one weight file to their names.
func publishFile(ps *paths) error {
	moves := [][2]string{
		{filepath.Join(ps.partial, ManifestName), ps.manifestPath()},
		{filepath.Join(ps.partial, ps.file), ps.out},
	}
	for _, m := range moves {
		if err := os.Rename(m[0], m[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := syncDir(filepath.Dir(ps.out)); err != nil {
		return err
	}
	return os.RemoveAll(ps.partial)
}
