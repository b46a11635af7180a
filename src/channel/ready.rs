//! What those who wait know of one end of a channel, of any kind.
//!
//! An end is *ready* if its next operation would not have to wait: because there is work (something to receive, or room to
//! send), or because it would be refused (the other end has left, the context is closed). Only this end takes work away, so
//! work stays until it is done. A refusal stays too, unless a new peer comes.

use crate::format::Owner;
use crate::process::local::Local;
use crate::wait::Waitable;
use std::rc::Rc;

/// See the module.
pub(crate) trait Ready: Waitable {
    /// Whether something is queued; or, for an end that sends, whether there is room. Cheap: may be asked again and again.
    fn has_work(&self) -> bool;

    /// Whether operations that find no work are refused.
    fn is_refused(&self) -> bool;

    /// Whether the next operation would not wait.
    fn is_ready(&self) -> bool {
        self.has_work() || self.is_refused()
    }

    /// Whose it is.
    fn local(&self) -> &Rc<Local>;

    /// The process at the other end, dead or alive.
    fn peer(&self) -> Option<Owner>;

    /// The next operation that finds no work asks anew whether the other end has left.
    fn look_again(&self);

    /// Looks whether that process lives; false if not, and then this end knows it, whoever reaps.
    fn check_peer(&self) -> bool;

    /// Reaps for a moment.
    fn lend_a_hand(&self);
}
