package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// memory is what a process holds, in bytes.
type memory struct {
	private int64 // RssAnon: what is no file's
	highest int64 // VmHWM: the most that was ever resident, pages of files included
}

// memoryOf is zero for a process that has ended.
func memoryOf(pid int) (m memory) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m
	}
	for line := range bytes.Lines(status) {
		for name, to := range map[string]*int64{"RssAnon:": &m.private, "VmHWM:": &m.highest} {
			if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
				kib, _ := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte(" kB"))), 10, 64)
				*to = kib << 10
			}
		}
	}
	return m
}

// watch samples the memory of a process until stop is closed and sends the largest values.
func watch(pid int, stop <-chan struct{}, peak chan<- memory) {
	var most memory
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			peak <- most
			return
		case <-tick.C:
			m := memoryOf(pid)
			most.private, most.highest = max(most.private, m.private), max(most.highest, m.highest)
		}
	}
}
