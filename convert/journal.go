package convert

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"github.com/nf4conv/nf4conv/internal/fault"
	"github.com/nf4conv/nf4conv/internal/treehash"
)

// The journal is a text file beside OUT.partial. Each line is the CRC-32C of the rest
// of the line, a space, and a JSON document; the first is a journalHead, the last of
// a finished run a journalEnd, the others are Records. A line is appended with one
// write after the bytes it speaks of were written; a torn last line is ignored.
//
// The journal is not synced: after a power cut it may name tensors whose bytes were
// lost. That is harmless, because a resumed run reads back what the journal names
// and compares digests.
type journal struct {
	mu   sync.Mutex
	f    *os.File
	path string
}

type journalHead struct {
	Journal int             `json:"journal"` // version
	Plan    treehash.Digest `json:"plan"`
	Verb    string          `json:"verb"`
	Options json.RawMessage `json:"options"`
	Sources []sourceStat    `json:"sources"`
}

// sourceStat is how a source file looked when its weights were read.
type sourceStat struct {
	Name    string `json:"name"`
	Size    int64  `json:"size"`
	ModTime int64  `json:"mtime_ns"`
}

// Record says that a job is done.
type Record struct {
	Job     int               `json:"job"`
	Name    string            `json:"name"`
	Source  []treehash.Digest `json:"source"`  // aligned with Job.Inputs
	Outputs []treehash.Digest `json:"outputs"` // aligned with Job.Outputs
	State   string            `json:"state,omitempty"`
	Rel     float64           `json:"rel_error,omitempty"`
	Merge   *TensorMerge      `json:"merge,omitempty"`
}

// journalEnd says that OUT.partial is complete and synced, and which directory it is
// about to replace.
type journalEnd struct {
	Complete bool   `json:"complete"`
	Replaces fileID `json:"replaces"`
}

const journalVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// createJournal begins a new journal, locked against other processes.
func createJournal(path string, head journalHead) (*journal, error) {
	j, err := openJournal(path, os.O_CREATE)
	if err != nil {
		return nil, err
	}
	if err := j.f.Truncate(0); err != nil {
		return nil, errors.Join(fault.IOf("writing %q: %w", path, err), j.close())
	}
	if err := j.append(head); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return j, nil
}

// openJournal opens a journal and locks it.
func openJournal(path string, flag int) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|flag, 0o666)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fault.WithHint(fault.IOf("opening the journal: %w", err),
			"OUT.partial and OUT.partial.journal stand beside OUT; you need the right to write there")
	case err != nil:
		return nil, fault.IOf("opening the journal: %w", err)
	}
	if err := lockFile(f); err != nil {
		_ = f.Close()
		if isLocked(err) {
			return nil, fault.WithHint(
				fault.IOf("another nf4conv is writing this output: it holds the lock of %q", path), "wait for it, or choose another name")
		}
		return nil, fault.WithHint(fault.IOf("locking %q: %w", path, err), "this file system may know no locks; write to another one")
	}
	return &journal{f: f, path: path}, nil
}

func (j *journal) append(doc any) error {
	b, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encoding a journal line: %w", err)
	}
	line := fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(b, castagnoli), b)
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.f.Write(line); err != nil {
		return spaceError(fmt.Errorf("writing the journal: %w", err))
	}
	return nil
}

func (j *journal) sync() error {
	if err := j.f.Sync(); err != nil {
		return fault.IOf("syncing the journal: %w", err)
	}
	return nil
}

func (j *journal) close() error { return j.f.Close() }

// remove deletes the journal while it is still locked, then lets go of it.
func (j *journal) remove() error {
	err := os.Remove(j.path)
	return errors.Join(err, j.f.Close())
}

// journalContents is what a journal says.
type journalContents struct {
	head    journalHead
	records []Record
	end     *journalEnd
	good    int64 // bytes of whole lines, before a torn tail
}

// read parses the journal from its start up to a torn tail. ok is false when not even
// the head is whole.
func (j *journal) read() (c journalContents, ok bool, err error) {
	if _, err := j.f.Seek(0, io.SeekStart); err != nil {
		return c, false, fault.IOf("reading the journal: %w", err)
	}
	r := bufio.NewReaderSize(j.f, 1<<16)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return c, ok, fault.IOf("reading the journal: %w", err)
		}
		doc, whole := parseLine(line)
		if !whole || !c.take(doc, ok) {
			break
		}
		ok = true
		c.good += int64(len(line))
	}
	return c, ok, nil
}

// cut takes off a torn tail, so that later lines stand on their own.
func (j *journal) cut(c *journalContents) error {
	if err := j.f.Truncate(c.good); err != nil {
		return fault.IOf("cutting a torn line off the journal: %w", err)
	}
	return nil
}

// parseLine checks a line's form and checksum.
func parseLine(line []byte) (doc []byte, ok bool) {
	sum, doc, found := bytes.Cut(line, []byte(" "))
	if !found || !bytes.HasSuffix(doc, []byte("\n")) {
		return nil, false
	}
	doc = doc[:len(doc)-1]
	want, err := strconv.ParseUint(string(sum), 16, 32)
	return doc, err == nil && uint32(want) == crc32.Checksum(doc, castagnoli)
}

// take adds one line to the contents.
func (c *journalContents) take(doc []byte, haveHead bool) bool {
	if !haveHead {
		return json.Unmarshal(doc, &c.head) == nil && c.head.Journal == journalVersion
	}
	if bytes.HasPrefix(doc, []byte(`{"complete"`)) {
		var e journalEnd
		if json.Unmarshal(doc, &e) != nil {
			return false
		}
		c.end = &e
		return true
	}
	var r Record
	if json.Unmarshal(doc, &r) != nil {
		return false
	}
	c.records = append(c.records, r)
	return true
}

// exists tells whether something stands under that name, without following a link.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fault.IOf("looking at the output: %w", err)
	}
	return true, nil
}
