//! Mistakes that show that the sequences find what they are for: with one in the model, the
//! registry must seem wrong.

/// A mistake that is built into the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Planted {
    /// None: this is the page.
    #[default]
    Nothing,
    /// Of all answers the oldest makes room, whichever source has the most.
    AnswersByAge,
    /// Clients that ask make room as readily as silent ones.
    AskingGo,
    /// Clients that ask make no room for those of other sources.
    AskingStay,
    /// Sources are bounded in a table that is less than half full.
    BoundedAlways,
    /// Clients that are cut off make room before others.
    CutOffGo,
    /// A newcomer is refused when the registry is full.
    FullRefuses,
    /// The operator's own networks are bounded like others.
    LocalsBounded,
    /// A doubt begins again with each ask.
    DoubtsAnew,
    /// One neighbour that doubts a client is enough to cut it off.
    DoubtsCutAlone,
    /// The first report is as good as the second.
    DoubtsFromTheFirst,
    /// No client is doubted, however often it is reported.
    DoubtsNever,
    /// Clients whose partners went count as lone.
    LosersLone,
    /// The oldest client of a source makes room.
    OldestGoes,
    /// Clients that others reported make room before those of a source that has more.
    ReportedGo,
    /// Clients that were reported are forgotten after the retention.
    ReportedSoonForgotten,
    /// The sources of one IPv6 /48 are bounded one by one only.
    SitesUnbounded,
    /// Of equal sources the one with the highest address makes room.
    TiesByAddress,
    /// Of equal sources also that of the tip makes room.
    TipsGo,
}

impl Planted {
    /// Those about rule 19, and about how long what is lost is remembered.
    pub(crate) const OF_ROOM: [Self; 14] = [
        Self::AnswersByAge,
        Self::AskingGo,
        Self::AskingStay,
        Self::BoundedAlways,
        Self::CutOffGo,
        Self::FullRefuses,
        Self::LocalsBounded,
        Self::LosersLone,
        Self::OldestGoes,
        Self::ReportedGo,
        Self::ReportedSoonForgotten,
        Self::SitesUnbounded,
        Self::TiesByAddress,
        Self::TipsGo,
    ];

    /// Those about rules 7 and 8.
    pub(crate) const OF_DOUBT: [Self; 4] =
        [Self::DoubtsAnew, Self::DoubtsCutAlone, Self::DoubtsFromTheFirst, Self::DoubtsNever];
}
