//! Counts the memory that the current thread has taken, so that a target can have a bound.

#![expect(unsafe_code, reason = "an allocator is unsafe by its trait; this one hands all on")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    /// Bytes now and at most, since the last [`peak_of`] began.
    static TAKEN: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn note(more: usize, less: usize) {
    // A thread that ends frees memory when its counter is gone.
    let _ = TAKEN.try_with(|taken| {
        let (now, most) = taken.get();
        let now = now.wrapping_add_unsigned(more).wrapping_sub_unsigned(less);
        taken.set((now, most.max(now)));
    });
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller keeps the promises of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(0, layout.size());
        // SAFETY: the caller keeps the promises of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, layout.size());
        // SAFETY: the caller keeps the promises of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Runs it, and returns with its result how many bytes it had taken at one time.
pub(super) fn peak_of<T>(run: impl FnOnce() -> T) -> (T, usize) {
    TAKEN.set((0, 0));
    let result = run();
    (result, usize::try_from(TAKEN.get().1).unwrap_or(0))
}
