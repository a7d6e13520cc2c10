package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/nf4conv/nf4conv/internal/fault"
)

// prepare looks at what stands at and beside the output name, and either takes up an
// interrupted run, begins anew, or refuses. already is true when an interrupted run
// of the same plan had done everything and only its last renaming was missing.
func (r *runner) prepare() (already bool, err error) {
	ps := &r.out.paths
	if err := checkNames(r.plan, ps); err != nil {
		return false, err
	}
	haveJournal, err := exists(ps.journal)
	if err != nil {
		return false, err
	}
	havePartial, err := exists(ps.partial)
	if err != nil {
		return false, err
	}
	switch {
	case haveJournal:
		if already, err := r.takeUp(); already || err != nil {
			return already, err
		}
	case havePartial:
		return false, strangePartial(ps)
	}
	if r.journal == nil {
		if err := r.beginAnew(); err != nil {
			return false, err
		}
	}
	if err := r.out.open(); err != nil {
		return false, errors.Join(err, r.out.close(), r.journal.close())
	}
	return false, nil
}

// beginAnew checks that the output may be written and starts a journal.
func (r *runner) beginAnew() error {
	ps := &r.out.paths
	if err := checkFree(ps, r.opts.Overwrite); err != nil {
		return err
	}
	if err := checkSpace(r.plan, ps); err != nil {
		return err
	}
	head, err := r.head()
	if err != nil {
		return err
	}
	r.journal, err = createJournal(ps.journal, head)
	return err
}

func (r *runner) head() (journalHead, error) {
	digest, err := r.plan.Digest()
	if err != nil {
		return journalHead{}, fmt.Errorf("hashing the plan: %w", err)
	}
	options, err := json.Marshal(r.plan.Options)
	if err != nil {
		return journalHead{}, fmt.Errorf("encoding the options: %w", err)
	}
	stats, err := sourceStats(r.plan)
	return journalHead{Journal: journalVersion, Plan: digest, Verb: r.plan.Verb, Options: options, Sources: stats}, err
}

// sourceStats are the sizes and times of the source's files as they were when they
// were opened.
func sourceStats(p *Plan) ([]sourceStat, error) {
	var out []sourceStat
	for _, f := range p.weightFiles() {
		fi := f.Stat()
		out = append(out, sourceStat{Name: filepath.Base(f.Path()), Size: fi.Size(), ModTime: fi.ModTime().UnixNano()})
	}
	return out, nil
}

// takeUp opens the journal of an earlier run. It leaves r.journal nil when there is
// nothing to continue.
func (r *runner) takeUp() (already bool, err error) {
	ps := &r.out.paths
	j, err := openJournal(ps.journal, 0)
	if err != nil {
		return false, err
	}
	c, ok, err := j.read()
	if err == nil {
		err = j.cut(&c)
	}
	if err != nil {
		return false, errors.Join(err, j.close())
	}
	head, err := r.head()
	if err != nil {
		return false, errors.Join(err, j.close())
	}
	same := ok && c.head.Plan == head.Plan
	if c.end != nil {
		// Everything was written and synced; finish the renaming whatever is asked now.
		if err := publish(ps, c.end.Replaces, j); err != nil {
			return false, err
		}
		if same && !r.opts.Restart {
			r.log.Info("an interrupted run had finished; its output took its final name", "out", ps.out)
			return true, nil
		}
		return false, nil
	}
	if r.opts.Restart || !ok {
		r.log.Info("starting over", "restart", r.opts.Restart)
		return false, errors.Join(removeAll(ps.partial), j.remove())
	}
	if !same {
		return false, errors.Join(changedError(ps, &c.head, &head), j.close())
	}
	if err := checkFree(ps, r.opts.Overwrite); err != nil {
		return false, errors.Join(err, j.close())
	}
	if err := checkSpace(r.plan, ps); err != nil {
		return false, errors.Join(err, j.close())
	}
	r.journal = j
	for _, rec := range c.records {
		if rec.Job >= 0 && rec.Job < len(r.plan.Jobs) && r.plan.Jobs[rec.Job].Name == rec.Name &&
			len(rec.Outputs) == len(r.plan.Jobs[rec.Job].Outputs) && len(rec.Source) == len(r.plan.Jobs[rec.Job].Inputs) {
			r.records[rec.Job] = rec
		}
	}
	if !slices.Equal(c.head.Sources, head.Sources) {
		return false, r.recheckSource()
	}
	return false, nil
}

// recheckSource is for source files that were touched since the interrupted run:
// what was converted must still be what stands there.
func (r *runner) recheckSource() error {
	r.log.Info("the source files have other times than when the interrupted run read them: comparing what was converted")
	buf := make([]byte, 1<<18)
	for i := range r.records {
		for k := range r.records[i].Source {
			ref := &r.plan.Jobs[i].Inputs[k]
			d, err := hashRef(ref, buf)
			if err != nil {
				return errors.Join(err, r.journal.close())
			}
			if d != r.records[i].Source[k] {
				return errors.Join(fault.WithHint(
					fault.Inputf("resuming %q: %q: tensor %q has changed since the interrupted run converted it: BLAKE3 %v then, %v now",
						r.out.paths.out, ref.File, ref.Name, r.records[i].Source[k], d),
					"--restart throws away what was done and converts the source as it is now"), r.journal.close())
			}
		}
	}
	return nil
}

// resume compares what the journal says is done with what stands in the files, on all
// workers, and returns the number of jobs that need not be done again.
func (r *runner) resume(ctx context.Context) (int, error) {
	r.opts.Progress.stage("checking what is done")
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.plan.Schedule.Workers)
	good := make([]bool, len(r.records))
	for i := range r.records {
		if r.records[i].Name == "" {
			continue
		}
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			ok, err := r.stands(i)
			good[i] = ok
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	n := 0
	for i := range r.records {
		switch {
		case good[i]:
			n++
			r.opts.Progress.Bytes.Add(r.plan.Jobs[i].share)
			r.opts.Progress.Tensors.Add(1)
		case r.records[i].Name != "":
			r.log.Info("converting again: what the journal says was written does not stand in the file", "tensor", r.records[i].Name)
			r.records[i] = Record{}
		}
	}
	return n, nil
}

// stands tells whether the outputs of job i are in the files.
func (r *runner) stands(i int) (bool, error) {
	for k := range r.plan.Jobs[i].Outputs {
		at := &r.plan.Jobs[i].Outputs[k]
		if at.Part == PartQuantState {
			continue // its text is in the journal
		}
		d, err := r.out.digest(at)
		if err != nil {
			return false, err
		}
		if d != r.records[i].Outputs[k] {
			return false, nil
		}
	}
	return true, nil
}
